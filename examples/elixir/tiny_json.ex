defmodule TinyJSON do
  @moduledoc """
  As much JSON as the example needs on a machine without packages. An application takes `Jason`, or `JSON` from Elixir
  1.18 on.
  """

  def encode!(value), do: value |> encode() |> IO.iodata_to_binary()

  defp encode(nil), do: "null"
  defp encode(value) when is_boolean(value) or is_integer(value), do: to_string(value)
  defp encode(value) when is_float(value), do: :erlang.float_to_binary(value, [:short])
  defp encode(value) when is_atom(value), do: value |> Atom.to_string() |> encode()
  defp encode(value) when is_list(value), do: ["[", value |> Enum.map(&encode/1) |> Enum.intersperse(","), "]"]

  defp encode(value) when is_map(value) do
    pairs = for {name, item} <- value, do: [encode(to_string(name)), ":", encode(item)]
    ["{", Enum.intersperse(pairs, ","), "}"]
  end

  defp encode(value) when is_binary(value), do: [?", for(<<char::utf8 <- value>>, do: escape(char)), ?"]

  defp escape(char) when char in [?", ?\\], do: [?\\, char]
  defp escape(char) when char < 0x20, do: ["\\u", char |> Integer.to_string(16) |> String.pad_leading(4, "0")]
  defp escape(char), do: <<char::utf8>>

  def decode!(text) do
    {value, rest} = text |> skip() |> value()
    "" = skip(rest)
    value
  end

  defp skip(<<char, rest::binary>>) when char in ' \t\r\n', do: skip(rest)
  defp skip(rest), do: rest

  defp value("null" <> rest), do: {nil, rest}
  defp value("true" <> rest), do: {true, rest}
  defp value("false" <> rest), do: {false, rest}
  defp value("\"" <> rest), do: string(rest, [])
  defp value("[" <> rest), do: rest |> skip() |> items([])
  defp value("{" <> rest), do: rest |> skip() |> pairs(%{})

  defp value(rest) do
    [number] = Regex.run(~r/^-?\d+(\.\d+)?([eE][+-]?\d+)?/, rest, capture: :first)
    rest = binary_part(rest, byte_size(number), byte_size(rest) - byte_size(number))
    {parsed, ""} = if number =~ ~r/[.eE]/, do: Float.parse(number), else: Integer.parse(number)
    {parsed, rest}
  end

  defp items("]" <> rest, found), do: {Enum.reverse(found), rest}
  defp items("," <> rest, found), do: rest |> skip() |> items(found)

  defp items(rest, found) do
    {item, rest} = value(rest)
    rest |> skip() |> items([item | found])
  end

  defp pairs("}" <> rest, found), do: {found, rest}
  defp pairs("," <> rest, found), do: rest |> skip() |> pairs(found)

  defp pairs("\"" <> rest, found) do
    {name, rest} = string(rest, [])
    ":" <> rest = skip(rest)
    {item, rest} = rest |> skip() |> value()
    rest |> skip() |> pairs(Map.put(found, name, item))
  end

  defp string("\"" <> rest, found), do: {found |> Enum.reverse() |> IO.iodata_to_binary(), rest}

  defp string("\\u" <> <<hex::binary-size(4), rest::binary>>, found) do
    case {String.to_integer(hex, 16), rest} do
      {high, "\\u" <> <<low::binary-size(4), rest::binary>>} when high in 0xD800..0xDBFF ->
        code = 0x10000 + (high - 0xD800) * 0x400 + (String.to_integer(low, 16) - 0xDC00)
        string(rest, [<<code::utf8>> | found])

      {code, rest} ->
        string(rest, [<<code::utf8>> | found])
    end
  end

  defp string(<<?\\, char, rest::binary>>, found) do
    plain = %{?n => "\n", ?t => "\t", ?r => "\r", ?b => "\b", ?f => "\f"}
    string(rest, [Map.get(plain, char, <<char>>) | found])
  end

  defp string(<<char::utf8, rest::binary>>, found), do: string(rest, [<<char::utf8>> | found])
end
