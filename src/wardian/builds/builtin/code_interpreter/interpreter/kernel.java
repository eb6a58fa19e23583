/* The Java kernel: runs cells in a JShell of this very virtual machine and speaks Jupyter's messages.

   java kernel.java: requests come in by standard input, messages go out by standard output, a JSON line each. A
   request is {id, code, silent}; messages are {kind, content}, and {kind: "idle", id} ends each request.

   A cell is any number of snippets, as JShell takes them; the value of the last one is its result when that is an
   expression. Code that begins with ENV is no code but an object of variables to set (null: to remove). */
import java.io.*;
import java.lang.reflect.*;
import java.nio.charset.StandardCharsets;
import java.util.*;
import jdk.jshell.*;
import jdk.jshell.SourceCodeAnalysis.CompletionInfo;

class Kernel {
    static final String ENV = "//env ";
    static final int GATHERED_MAX = 8192, PAUSE_MS = 100;

    static final PrintStream messages = new PrintStream(new FileOutputStream(FileDescriptor.out), true);
    static final List<Gathered> outputs = List.of(new Gathered("stdout"), new Gathered("stderr"));
    static JShell shell;
    static int count = 0;
    static volatile boolean running, interrupted;

    public static void main(String... arguments) throws Exception {
        System.setOut(new PrintStream(outputs.get(0), false, StandardCharsets.UTF_8));
        System.setErr(new PrintStream(outputs.get(1), false, StandardCharsets.UTF_8));
        shell = JShell.builder().executionEngine("local").out(System.out).err(System.err).build();
        for (String wanted : List.of("java.io.*", "java.math.*", "java.util.*", "java.util.function.*", "java.util.stream.*"))
            shell.eval("import " + wanted + ";");
        sun.misc.Signal.handle(new sun.misc.Signal("INT"), signal -> interrupted = running);
        daemon(Kernel::flush);
        daemon(() -> { // again and again: while it compiles, a shell does not heed it
            if (interrupted) shell.stop();
        });
        var requests = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        System.setIn(InputStream.nullInputStream());
        for (String line; (line = requests.readLine()) != null; ) {
            Map<String, Object> request = new Json(line).object();
            running = true;
            answer((String) request.get("code"), (Boolean) request.get("silent"));
            running = interrupted = false;
            flush();
            say("{\"kind\":\"idle\",\"id\":" + request.get("id") + "}");
        }
        System.exit(0);
    }

    // --- running

    static void answer(String code, boolean silent) throws Exception {
        if (code.startsWith(ENV)) {
            setEnvironment(new Json(code.substring(ENV.length())).object());
            return;
        }
        if (!silent) say("execute_input", "{\"execution_count\":" + ++count + ",\"code\":" + quoted(code) + "}");
        String value = null;
        for (String rest = code; !rest.isBlank(); ) {
            CompletionInfo next = shell.sourceCodeAnalysis().analyzeCompletion(rest);
            String source = next.completeness().isComplete() ? next.source() : rest;
            rest = next.completeness().isComplete() ? next.remaining() : "";
            value = null;
            List<SnippetEvent> events = interrupted ? List.of() : shell.eval(source);
            if (interrupted) {
                error("KeyboardInterrupt", "interrupted", source);
                return;
            }
            for (SnippetEvent event : events) {
                if (event.causeSnippet() != null) continue; // an earlier snippet that this one made valid
                if (failed(event)) return;
                if (event.snippet().kind() == Snippet.Kind.VAR && event.snippet().subKind() != Snippet.SubKind.TEMP_VAR_EXPRESSION_SUBKIND) continue;
                value = event.value();
            }
        }
        if (value != null && !value.isEmpty() && !silent)
            say("execute_result", "{\"data\":{\"text/plain\":" + quoted(value) + "},\"metadata\":{},\"execution_count\":" + count + "}");
    }

    static boolean failed(SnippetEvent event) {
        if (event.status() == Snippet.Status.REJECTED) {
            var said = new ArrayList<String>();
            shell.diagnostics(event.snippet()).forEach(each -> said.add(each.getMessage(Locale.ROOT)));
            error("CompilationError", String.join("\n", said), event.snippet().source());
        } else if (event.exception() instanceof EvalException thrown) {
            var trace = new StringWriter();
            thrown.printStackTrace(new PrintWriter(trace));
            error(thrown.getExceptionClassName(), String.valueOf(thrown.getMessage()), trace.toString());
        } else if (event.exception() != null) {
            error("UnresolvedReference", event.exception().getMessage(), event.snippet().source());
        } else return false;
        return true;
    }

    static void error(String name, String value, String trace) {
        var lines = new ArrayList<String>();
        trace.lines().forEach(line -> lines.add(quoted(line)));
        say("error", "{\"ename\":" + quoted(name) + ",\"evalue\":" + quoted(value) + ",\"traceback\":[" + String.join(",", lines) + "]}");
    }

    /** What System.getenv and the programs that are started find; Java itself has no way to change it. */
    @SuppressWarnings("unchecked")
    static void setEnvironment(Map<String, Object> changes) throws Exception {
        Field field = Class.forName("java.lang.ProcessEnvironment").getDeclaredField("theEnvironment");
        field.setAccessible(true);
        var environment = (Map<Object, Object>) field.get(null);
        for (var change : changes.entrySet()) {
            Object name = ofEnvironment("Variable", change.getKey());
            if (change.getValue() == null) environment.remove(name);
            else environment.put(name, ofEnvironment("Value", change.getValue()));
        }
    }

    static Object ofEnvironment(String kind, Object text) throws Exception {
        Method make = Class.forName("java.lang.ProcessEnvironment$" + kind).getDeclaredMethod("valueOf", String.class);
        make.setAccessible(true);
        return make.invoke(null, text);
    }

    // --- talking

    static synchronized void say(String message) {
        messages.print(message + "\n");
        messages.flush();
    }

    static void say(String kind, String content) {
        flush();
        say("{\"kind\":\"" + kind + "\",\"content\":" + content + "}");
    }

    static void flush() {
        System.out.flush();
        System.err.flush();
    }

    /** Do it every now and then, for as long as the kernel lives. */
    static void daemon(Runnable work) {
        new java.util.Timer(true).schedule(new TimerTask() {
            public void run() {
                work.run();
            }
        }, PAUSE_MS / 2, PAUSE_MS);
    }

    static String quoted(String text) {
        var json = new StringBuilder("\"");
        for (char each : text.toCharArray())
            if (each == '"' || each == '\\') json.append('\\').append(each);
            else if (each < ' ' || each > '~') json.append(String.format("\\u%04x", (int) each));
            else json.append(each);
        return json.append('"').toString();
    }

    /** What is printed: gathered, and said when it is flushed. */
    static class Gathered extends OutputStream {
        final String name;
        final ByteArrayOutputStream bytes = new ByteArrayOutputStream();

        Gathered(String name) {
            this.name = name;
        }

        @Override
        public synchronized void write(int each) {
            bytes.write(each);
            if (bytes.size() > GATHERED_MAX) flush();
        }

        @Override
        public synchronized void write(byte[] some, int from, int length) {
            bytes.write(some, from, length);
            if (bytes.size() > GATHERED_MAX) flush();
        }

        @Override
        public synchronized void flush() {
            if (bytes.size() == 0) return;
            String text = bytes.toString(StandardCharsets.UTF_8);
            bytes.reset();
            say("{\"kind\":\"stream\",\"content\":{\"name\":\"" + name + "\",\"text\":" + quoted(text) + "}}");
        }
    }

    /** Flat objects, as our own server writes them. */
    static class Json {
        final String text;
        int at = 0;

        Json(String text) {
            this.text = text;
        }

        Map<String, Object> object() {
            var found = new LinkedHashMap<String, Object>();
            expect('{');
            while (peek() != '}') {
                String name = string();
                expect(':');
                found.put(name, value());
                if (peek() == ',') at++;
            }
            return found;
        }

        Object value() {
            if (peek() == '"') return string();
            int from = at;
            while (",}".indexOf(text.charAt(at)) < 0) at++;
            return switch (text.substring(from, at).strip()) {
                case "null" -> null;
                case "true" -> true;
                case "false" -> false;
                default -> Long.valueOf(text.substring(from, at).strip());
            };
        }

        String string() {
            expect('"');
            var found = new StringBuilder();
            for (char each; (each = text.charAt(at++)) != '"'; ) found.append(each == '\\' ? escaped() : each);
            return found.toString();
        }

        char escaped() {
            char each = text.charAt(at++);
            if (each != 'u') return "bfnrt".indexOf(each) < 0 ? each : "\b\f\n\r\t".charAt("bfnrt".indexOf(each));
            at += 4;
            return (char) Integer.parseInt(text.substring(at - 4, at), 16);
        }

        char peek() {
            while (text.charAt(at) == ' ') at++;
            return text.charAt(at);
        }

        void expect(char wanted) {
            if (peek() != wanted) throw new IllegalArgumentException("not '" + wanted + "' at " + at);
            at++;
        }
    }
}
