defmodule DspoolBridge do
  @moduledoc """
  One `python -m dspool.worker.bridge` behind a port, as a GenServer.

      children = [
        {DspoolBridge,
         name: MyApp.Dspy,
         python: "/path/to/venv/bin/python",
         json: Jason,
         setup: [
           {"configure_lm", %{provider: "openai", model: "gpt-4o-mini"}},
           {"create_program", %{id: "qa", signature: %{inputs: [%{name: "question"}], outputs: [%{name: "answer"}]}}}
         ]}
      ]

      {:ok, %{"answer" => answer}} =
        DspoolBridge.call(MyApp.Dspy, "execute_program", %{program_id: "qa", inputs: %{question: "Why?"}})

  What the bridge knows (its LM, programs, sessions) ends with its process. `setup` is sent first each time that a
  process is started, so that a supervisor's restart brings it all back.

  Several callers may ask at once; the bridge answers them one after the other. For more at a time start several.
  """

  use GenServer

  @doc """
  Starts the process.

    * `:json` - a module with `encode!/1` and `decode!/1`: `Jason`, or `JSON` from Elixir 1.18 on
    * `:python` - the interpreter that dspool is installed for; default: the `python3` of the PATH
    * `:args` - the bridge's own arguments, as in `["--mode", "pool-worker", "--worker-id", "w1"]`
    * `:env` - a map of environment variables, for keys; they are in no argument that `ps` shows
    * `:setup` - `{command, args}` pairs that are sent first; the process ends if one is refused
    * `:name` - the GenServer's
  """
  def start_link(options) do
    GenServer.start_link(__MODULE__, options, Keyword.take(options, [:name]))
  end

  @doc """
  Asks, and waits for the answer.

  `{:ok, result}`, or `{:error, error_info}` with `"code"`, `"message"`, `"retryable"`, `"traceback"`, or
  `{:error, {:bridge_exited, status}}` where the process has ended with the request in it. A call that is over its
  timeout runs on in the bridge; `deadline_ms` in the options bounds what its requests to the LM may take.
  """
  def call(bridge, command, args \\ %{}, options \\ []) do
    GenServer.call(bridge, {:ask, command, args, Keyword.take(options, [:deadline_ms])}, options[:timeout] || 60_000)
  end

  @impl true
  def init(options) do
    python = options[:python] || System.find_executable("python3")
    env = for {name, value} <- options[:env] || %{}, do: {to_charlist(name), to_charlist(value)}

    port =
      Port.open({:spawn_executable, python}, [
        :binary,
        :exit_status,
        # The length before each frame, both ways: the port adds it and takes it off.
        {:packet, 4},
        {:args, ["-m", "dspool.worker.bridge" | options[:args] || []]},
        {:env, env}
        # Never :stderr_to_stdout: what is printed would then stand among the frames.
      ])

    state = %{port: port, json: Keyword.fetch!(options, :json), next_id: 1, waiting: %{}}
    {:ok, state, {:continue, {:setup, options[:setup] || []}}}
  end

  @impl true
  def handle_continue({:setup, requests}, state) do
    # The answers come in the order of the requests, so nobody has to wait for these before asking.
    {:noreply, Enum.reduce(requests, state, fn {command, args}, state -> send_request(state, command, args, [], :setup) end)}
  end

  @impl true
  def handle_call({:ask, command, args, fields}, from, state) do
    {:noreply, send_request(state, command, args, fields, from)}
  end

  @impl true
  def handle_info({port, {:data, frame}}, %{port: port} = state) do
    answer = state.json.decode!(frame)
    {from, waiting} = Map.pop(state.waiting, answer["id"])
    state = %{state | waiting: waiting}

    case {from, answer} do
      {nil, _} ->
        {:stop, {:foreign_answer, answer["id"]}, state}

      {:setup, %{"success" => false}} ->
        {:stop, {:setup_refused, answer["error"]}, state}

      {:setup, _} ->
        {:noreply, state}

      {from, %{"success" => true}} ->
        GenServer.reply(from, {:ok, answer["result"]})
        {:noreply, state}

      {from, _} ->
        GenServer.reply(from, {:error, answer["error_info"]})
        {:noreply, state}
    end
  end

  def handle_info({port, {:exit_status, status}}, %{port: port} = state) do
    for {_, from} <- state.waiting, from != :setup, do: GenServer.reply(from, {:error, {:bridge_exited, status}})
    {:stop, if(status == 0, do: :normal, else: {:bridge_exited, status}), %{state | waiting: %{}}}
  end

  defp send_request(state, command, args, fields, from) do
    request = Map.merge(Map.new(fields), %{id: state.next_id, command: command, args: args})
    Port.command(state.port, state.json.encode!(request))
    %{state | next_id: state.next_id + 1, waiting: Map.put(state.waiting, state.next_id, from)}
  end
end
