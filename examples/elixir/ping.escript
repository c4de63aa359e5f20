#!/usr/bin/env escript
%% The bridge from Erlang alone: escript examples/elixir/ping.escript [PYTHON]

main(Arguments) ->
    Python = case Arguments of
        [Path] -> Path;
        [] -> os:find_executable("python3")
    end,
    Port = open_port({spawn_executable, Python},
                     [binary, exit_status, {packet, 4}, {args, ["-m", "dspool.worker.bridge"]}]),
    io:format("~s~n", [ask(Port, <<"{\"id\":0,\"command\":\"ping\",\"args\":{\"initialization\":true}}">>)]),
    io:format("~s~n", [ask(Port, <<"{\"id\":1,\"command\":\"dance\",\"args\":{}}">>)]),
    io:format("~s~n", [ask(Port, <<"no JSON">>)]),
    io:format("~s~n", [ask(Port, <<"{\"id\":2,\"command\":\"shutdown\",\"args\":{}}">>)]),
    receive
        {Port, {exit_status, Status}} -> io:format("exit status ~w~n", [Status])
    after 30000 -> halt(1)
    end.

ask(Port, Request) ->
    true = port_command(Port, Request),
    receive
        {Port, {data, Answer}} -> Answer
    after 30000 -> halt(1)
    end.
