# An agent: counts the words of some texts, asks before it goes on, and has another run look at the longest.
#
#   wardian agent freeze digest --entry-file examples/agent-digest/entry.sh
#   wardian run start digest --input '["one two", "three four five"]'
#   wardian run answer RUN yes
exec python3 - <<'END'
from wardian_run import run

counts = [run.step("count", lambda text: len(text.split()), text) for text in run.input]
run.emit("counted", counts)
if len(counts) > 1 and run.ask(f"{sum(counts)} words. Go on?") == "yes":
    longest = max(run.input, key=len)
    run.result({"words": sum(counts), "longest": run.call("digest", [longest])})
else:
    run.result({"words": sum(counts)})
END
