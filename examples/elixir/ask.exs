# DSPy from Elixir, from start to end:
#
#     OPENAI_API_KEY=... elixir examples/elixir/ask.exs
#
# PYTHON names the interpreter that dspool is installed for; LM_BASE another server than OpenAI's.

folder = Path.dirname(__ENV__.file)
Code.require_file(Path.join(folder, "dspool_bridge.ex"))
Code.require_file(Path.join(folder, "tiny_json.ex"))

lm = %{provider: "openai", model: System.get_env("LM_MODEL", "gpt-4o-mini")}
lm = if base = System.get_env("LM_BASE"), do: Map.put(lm, :api_base, base), else: lm
fields = fn names -> for name <- names, do: %{name: name, type: "str"} end
signature = %{inputs: fields.(["question"]), outputs: fields.(["answer"])}

bridge = MyApp.Dspy

options = [
  name: bridge,
  json: TinyJSON,
  python: System.get_env("PYTHON"),
  args: ["--mode", "pool-worker", "--worker-id", "worker_1"],
  setup: [{"configure_lm", lm}, {"create_program", %{id: "qa", signature: signature}}]
]

child = %{id: DspoolBridge, start: {DspoolBridge, :start_link, [options]}, restart: :transient}
{:ok, _} = Supervisor.start_link([child], strategy: :one_for_one)

ask = fn command, args -> DspoolBridge.call(bridge, command, args) end
question = fn text -> ask.("execute_program", %{program_id: "qa", inputs: %{question: text}}) end

{:ok, %{"status" => "ok", "worker_id" => "worker_1", "pid" => pid}} = ask.("ping", %{initialization: true})
IO.puts("the bridge is there")

{:ok, %{"answer" => answer}} = question.("Why is the sky \"blue\"? \u2603")
IO.puts("answer: #{answer}")

# Many callers at once: each gets its own answer.
answers =
  1..20
  |> Enum.map(fn number -> Task.async(fn -> question.("What is #{number}?") end) end)
  |> Task.await_many(60_000)

IO.puts("20 callers, #{answers |> Enum.uniq() |> length()} different answers")
IO.puts("the third: #{answers |> Enum.at(2) |> elem(1) |> Map.fetch!("answer")}")

# Errors are values, with a code to match on.
{:error, %{"code" => "unknown_command", "message" => message}} = ask.("dance", %{})
IO.puts(message)
{:error, %{"code" => "program_not_found", "message" => message}} = ask.("execute_program", %{program_id: "nobody"})
IO.puts(message)

# A session's programs and data go with it.
{:ok, _} = ask.("create_program", %{id: "own", signature: signature, session_id: "user-1"})
{:ok, %{"status" => "updated"}} = ask.("update_session_data", %{session_id: "user-1", data: %{likes: ["tea", 1.5, nil]}})
{:ok, %{"likes" => ["tea", 1.5, nil]}} = ask.("get_session_data", %{session_id: "user-1"})
{:ok, %{"programs_removed" => removed}} = ask.("cleanup_session", %{session_id: "user-1"})
IO.puts("programs that went with the session: #{removed}")

# A bridge that dies is restarted by its supervisor, with its LM and its programs.
reference = bridge |> Process.whereis() |> Process.monitor()
{_, 0} = System.cmd("kill", ["-9", to_string(pid)])

receive do
  {:DOWN, ^reference, :process, _, reason} -> IO.puts("it died: #{inspect(reason)}")
end

wait = fn wait ->
  if Process.whereis(bridge), do: :ok, else: receive(do: (:never -> :ok), after: (10 -> wait.(wait)))
end

wait.(wait)
{:ok, %{"answer" => answer}} = question.("Are you back?")
IO.puts("and after its restart: #{answer}")

reference = bridge |> Process.whereis() |> Process.monitor()
{:ok, %{"status" => status}} = ask.("shutdown", %{})

receive do
  {:DOWN, ^reference, :process, _, reason} -> IO.puts("#{status}: #{inspect(reason)}")
end
