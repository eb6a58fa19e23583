/* Processes: starting them, their input and output, their end. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "agent.h"

enum { ARGUMENTS_MAX = 1 << 16, LABEL_MAX = 16 << 10, ENDED_MAX = 64, ENDED_MS = 30000 };
enum { STDOUT = 1, STDERR = 2, PTY = 3 };
static const char PATH[] = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

struct exec {
    struct stream stream;
    pid_t pid;
    int status;
    bool pty, exited;
    bool told_to_end;           /* by the host: then its end is the end of its output, whoever else holds the pipes */
    struct source out, err, in; /* a pty is `out`, both ways */
    int held[2];                /* the process's ends of its pipes: while we hold them, its end wakes us once, not thrice */
    struct backlog input;
    size_t debt; /* of `input`: bytes of an earlier attachment, never granted again */
    uint8_t *label;
    size_t label_size;
    struct exec *next;
};

/* Ended and told, but perhaps never heard: the host may have died meanwhile. */
struct ended {
    uint32_t id;
    pid_t pid;
    int status;
    bool pty;
    uint8_t *label;
    size_t label_size;
    uint64_t when;
};

static struct exec *execs;
static struct exec *spare; /* with its output pipes made and watched, so that starting is quick */
static int spare_out, spare_err; /* the ends for its process */
static bool spare_wanted;        /* not while a process is just starting: it needs the processor more */
static struct ended ended[ENDED_MAX];
static size_t ended_next;
static bool children;

bool processes_exist(void) { return children; }

/* ---- starting ---- */

/* Shared with the child, which borrows our memory until it has become the program. */
struct launch {
    char **argv, **envp;
    const char *cwd, *path;
    const struct user *user;
    int in, out, err;
    bool pty, become, anywhere; /* become: another user than we are; anywhere: nobody asked for that cwd */
    enum { STAGE_SETUP, STAGE_CWD, STAGE_PROGRAM } stage;
    int error;
};

/* Become the program; returns only when that fails, with the errno. */
static int run_program(const struct launch *launch) {
    const char *name = launch->argv[0];
    if (strchr(name, '/')) {
        execve(name, launch->argv, launch->envp);
        return errno;
    }
    static char file[PATH_MAX];
    int error = ENOENT;
    for (const char *at = launch->path; *name; at++) {
        int size = (int)strcspn(at, ":");
        if (snprintf(file, sizeof file, "%.*s%s%s", size, at, size ? "/" : "./", name) < (int)sizeof file) {
            execve(file, launch->argv, launch->envp);
            if (errno != ENOENT && errno != ENOTDIR) error = errno;
        }
        at += size;
        if (!*at) break;
    }
    return error;
}

static int child(void *context) {
    struct launch *launch = context;
    const struct user *user = launch->user;
    sigset_t none;
    sigemptyset(&none);
    syscall(SYS_rt_sigprocmask, SIG_SETMASK, &none, NULL, _NSIG / 8);
    setsid();
    if (launch->pty) ioctl(launch->in, TIOCSCTTY, 0);
    launch->stage = STAGE_SETUP;
    if (dup2(launch->in, 0) < 0 || dup2(launch->out, 1) < 0 || dup2(launch->err, 2) < 0 ||
        (launch->become && (syscall(SYS_setgroups, user->group_count, user->groups) ||
                                    syscall(SYS_setresgid, user->gid, user->gid, user->gid) ||
                                    syscall(SYS_setresuid, user->uid, user->uid, user->uid)))) {
        launch->error = errno;
        _exit(127);
    }
    launch->stage = STAGE_CWD;
    if (chdir(launch->cwd) && (!launch->anywhere || chdir("/"))) {
        launch->error = errno;
        _exit(127);
    }
    launch->stage = STAGE_PROGRAM;
    launch->error = run_program(launch);
    _exit(127);
}

/* The new process, which already runs the program; or -1 with the reason in `launch`. */
static pid_t start(struct launch *launch) {
    static _Alignas(16) char stack[32 << 10];
    launch->error = 0;
    pid_t pid = clone(child, stack + sizeof stack, CLONE_VM | CLONE_VFORK | SIGCHLD, launch);
    if (pid < 0) launch->error = errno;
    if (pid < 0 || !launch->error) return pid;
    while (waitpid(pid, NULL, 0) < 0 && errno == EINTR) {}
    return -1;
}

static int open_pty(struct request *request, const struct user *user, int *slave) {
    int unlock = 0;
    unsigned number;
    char name[32];
    struct winsize size = {.ws_col = (unsigned short)request_uint(request, 6, 2, 80), .ws_row = (unsigned short)request_uint(request, 7, 2, 24)};
    int master = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
    if (master < 0) return -1;
    if (ioctl(master, TIOCSPTLCK, &unlock) || ioctl(master, TIOCGPTN, &number)) {
        close(master);
        return -1;
    }
    snprintf(name, sizeof name, "/dev/pts/%u", number);
    *slave = open(name, O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (*slave < 0) {
        close(master);
        return -1;
    }
    ioctl(master, TIOCSWINSZ, &size);
    if (fchown(*slave, user->uid, (gid_t)-1)) {} /* best effort: not every kernel lets a terminal change hands */
    return master;
}

/* A pipe whose end for us (0: the reading one) does not block. */
static bool open_pipe(int ends[2], int ours) {
    if (pipe2(ends, O_CLOEXEC)) return false;
    fcntl(ends[ours], F_SETFL, O_NONBLOCK);
    return true;
}

static void close_if(int fd) {
    if (fd >= 0) close(fd);
}

static int null_device(void) {
    static int fd = -1;
    if (fd < 0) fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    return fd;
}

/* An exec with its output pipes; NULL with errno. */
static struct exec *make_exec(int *child_out, int *child_err) {
    int out[2] = {-1, -1}, err[2] = {-1, -1};
    struct exec *exec = calloc(1, sizeof *exec);
    if (!exec) return NULL;
    exec->held[0] = exec->held[1] = -1;
    exec->out = exec->err = exec->in = (struct source){.fd = -1, .wake = stream_wake, .owner = &exec->stream, .writable = true, .flows = true};
    if (open_pipe(out, 0) && open_pipe(err, 0)) {
        exec->out.fd = out[0];
        exec->err.fd = err[0];
        if (source_add(&exec->out, EPOLLIN) == 0 && source_add(&exec->err, EPOLLIN) == 0) {
            *child_out = out[1];
            *child_err = err[1];
            return exec;
        }
    } else {
        close_if(out[0]);
    }
    int error = errno;
    source_close(&exec->out);
    source_close(&exec->err);
    close_if(out[1]);
    close_if(err[1]);
    free(exec);
    errno = error;
    return NULL;
}

void exec_get_ready(void) {
    if (spare || !spare_wanted) return;
    spare = make_exec(&spare_out, &spare_err);
    spare_wanted = false;
}

static struct exec *take_spare(int *child_out, int *child_err) {
    spare_wanted = true;
    exec_get_ready();
    spare_wanted = false;
    struct exec *exec = spare;
    *child_out = spare_out;
    *child_err = spare_err;
    spare = NULL;
    return exec;
}

/* Turn the pipes into a pty, or add one for input; errno. */
static int open_stdio(struct exec *exec, struct launch *launch, struct request *request, bool input) {
    int in[2];
    launch->in = null_device();
    if (launch->in < 0) return errno;
    if (exec->pty) {
        source_close(&exec->out);
        source_close(&exec->err);
        close(launch->out);
        close(launch->err);
        launch->in = launch->out = launch->err = -1;
        exec->out.flows = false;
        exec->out.fd = open_pty(request, launch->user, &launch->in);
        launch->out = launch->err = launch->in;
        return exec->out.fd < 0 ? errno : source_add(&exec->out, EPOLLIN);
    }
    if (!input) return 0;
    if (!open_pipe(in, 1)) return errno;
    launch->in = in[0];
    exec->in.fd = in[1];
    return source_add(&exec->in, 0);
}

static void close_child_stdio(const struct launch *launch) {
    if (launch->in != null_device()) close_if(launch->in); /* made once, kept */
    if (launch->out != launch->in) close_if(launch->out);
    if (launch->err != launch->in) close_if(launch->err);
}

static bool names_same(const char *pair, const char *other) {
    size_t size = strcspn(other, "=");
    return strncmp(pair, other, size + 1) == 0;
}

/* The environment: our five, as far as the request has no own, then the request's. Its pointers end in `envp`. */
static void build_environment(struct launch *launch, char **given, size_t count) {
    static char home[600], user[80], logname[80], shell[300], path[sizeof PATH + 8];
    char *defaults[] = {home, user, logname, shell, path};
    char **at = launch->envp;
    snprintf(home, sizeof home, "HOME=%s", launch->user->home);
    snprintf(user, sizeof user, "USER=%s", launch->user->name);
    snprintf(logname, sizeof logname, "LOGNAME=%s", launch->user->name);
    snprintf(shell, sizeof shell, "SHELL=%s", launch->user->shell);
    snprintf(path, sizeof path, "PATH=%s", PATH);
    for (size_t i = 0; i < 5; i++) {
        bool overridden = false;
        for (size_t k = 0; k < count; k++) overridden |= names_same(given[k], defaults[i]);
        if (!overridden) *at++ = defaults[i];
    }
    launch->path = PATH;
    for (size_t k = 0; k < count; k++) {
        *at++ = given[k];
        if (names_same(given[k], path)) launch->path = given[k] + 5;
    }
    *at = NULL;
}

static void exec_close(struct stream *stream) {
    struct exec *exec = (struct exec *)stream;
    for (struct exec **at = &execs; *at; at = &(*at)->next)
        if (*at == exec) {
            *at = exec->next;
            break;
        }
    source_close(&exec->out);
    source_close(&exec->err);
    source_close(&exec->in);
    close_if(exec->held[0]);
    close_if(exec->held[1]);
    backlog_free(&exec->input);
    free(exec->label);
}

static void reply_failure(uint32_t id, const struct launch *launch) {
    const char *cwd = launch->cwd;
    int error = launch->error;
    if (launch->stage == STAGE_CWD && error == ENOENT) reply_error(id, ENOENT, "cwd '%s' does not exist", cwd);
    else if (launch->stage == STAGE_CWD) reply_error(id, error, "cwd '%s': %s", cwd, strerror(error));
    else if (launch->stage == STAGE_PROGRAM) reply_error(id, error, "%.1024s: %s", launch->argv[0], strerror(error));
    else reply_error(id, error, "cannot start a process: %s", strerror(error));
}

static const struct kind executing;

/* Everything about the process is known: make its stream and start it. */
static void launch_exec(uint32_t id, struct request *request, struct launch *launch, bool input) {
    struct exec *exec = take_spare(&launch->out, &launch->err);
    if (!exec || !stream_adopt(&exec->stream, &executing, id)) {
        reply_error(id, ENOMEM, "too many streams or files");
        spare = exec;
        return;
    }
    exec->pty = launch->pty = request->count[6] || request->count[7];
    exec->label_size = request->last[10].size;
    exec->label = exec->label_size ? malloc(exec->label_size) : NULL;
    launch->stage = STAGE_SETUP;
    launch->error = exec->label_size && !exec->label ? ENOMEM : open_stdio(exec, launch, request, input);
    if (exec->label) memcpy(exec->label, request->last[10].value, exec->label_size);
    if (!launch->error) exec->pid = start(launch);
    if (launch->error) {
        reply_failure(id, launch);
        stream_drop(&exec->stream);
    } else {
        struct out out = link_fields(REPLY, 0, id);
        put_raw(&out, 4, 0);
        put_uint(&out, 20, 4, (uint32_t)exec->pid);
        link_send(&out);
        link_flush();
        exec->next = execs;
        execs = exec;
        if (!exec->pty) {
            exec->held[0] = launch->out;
            exec->held[1] = launch->err;
            launch->out = launch->err = -1;
        }
        if (!children) guard_start();
        children = true;
    }
    close_child_stdio(launch);
}

void op_exec(uint32_t id, struct request *request) {
    struct launch launch = {0};
    size_t argc = request->count[3], envc = request->count[4];
    if (argc < 1 || argc > ARGUMENTS_MAX || envc > ARGUMENTS_MAX || request->last[10].size > LABEL_MAX) {
        reply_error(id, E2BIG, "no or too many arguments, or too long a label");
        return;
    }
    size_t most = argc > envc ? argc : envc;
    struct field *fields = malloc((argc + envc) * sizeof *fields);
    char **pointers = malloc((argc + 1 + 2 * envc + 6) * sizeof *pointers + most);
    char cwd[PATH_MAX];
    if (!fields || !pointers) {
        reply_error(id, ENOMEM, "no memory");
        goto done;
    }
    request_all(request, 3, fields, argc);
    request_all(request, 4, fields + argc, envc);
    const char *name = request_text(request, 1, "user"), *wanted = request_text(request, 5, NULL);
    bool input = request_uint(request, 8, 1, 0);
    char **given = pointers + argc + 1;
    launch.argv = pointers;
    launch.envp = given + envc;
    for (size_t i = 0; i < argc; i++) launch.argv[i] = field_text(request, &fields[i]);
    launch.argv[argc] = NULL;
    for (size_t i = 0; i < envc; i++) given[i] = field_text(request, &fields[argc + i]);
    launch.user = user_find(name);
    if (request->bad) reply_error(id, EINVAL, "malformed argument");
    else if (!launch.user) reply_error(id, EINVAL, "invalid username: '%.64s'", name);
    else if (path_resolve(cwd, launch.user, wanted ? wanted : "~")) reply_error(id, ENAMETOOLONG, "cwd too long");
    else {
        launch.cwd = cwd;
        launch.anywhere = !wanted;
        static uid_t own = UINT32_MAX;
        if (own == UINT32_MAX) own = geteuid();
        launch.become = launch.user->uid != own || strchr(name, ':');
        build_environment(&launch, given, envc);
        launch_exec(id, request, &launch, input);
    }
done:
    free(fields);
    free(pointers);
}

/* ---- running ---- */

static struct source *input_of(struct exec *exec) { return exec->pty ? &exec->out : &exec->in; }

static void consumed(struct exec *exec, size_t size) {
    size_t old = size < exec->debt ? size : exec->debt;
    exec->debt -= old;
    stream_grant(&exec->stream, size - old);
}

/* Write what we can; what the process will never take is dropped. */
static void feed(struct exec *exec) {
    struct source *to = input_of(exec);
    while (exec->input.size && to->fd >= 0 && to->writable) {
        ssize_t put = write(to->fd, exec->input.bytes + exec->input.start, exec->input.size);
        if (put >= 0) {
            backlog_take(&exec->input, (size_t)put);
            consumed(exec, (size_t)put);
        } else if (errno == EAGAIN) {
            source_await_writable(to);
        } else if (errno != EINTR) {
            if (!exec->pty) source_close(to);
            break;
        }
    }
    if (exec->input.size && (to->fd < 0 || to->writable)) {
        consumed(exec, exec->input.size);
        backlog_free(&exec->input);
    }
    if (exec->stream.host_eof && !exec->input.size && !exec->pty) source_close(to);
}

static void exec_data(struct stream *stream, const uint8_t *bytes, size_t size) {
    struct exec *exec = (struct exec *)stream;
    if (!backlog_add(&exec->input, bytes, size)) {
        consumed(exec, size); /* no memory: better lost input than a lost agent */
        return;
    }
    feed(exec);
}

static void exec_eof(struct stream *stream) { feed((struct exec *)stream); }

static void remember(const struct exec *exec) {
    struct ended *slot = &ended[ended_next++ % ENDED_MAX];
    free(slot->label);
    *slot = (struct ended){exec->stream.id, exec->pid, exec->status, exec->pty, exec->label, exec->label_size, now_ms()};
}

static void send_end(uint32_t id, int status) {
    struct out out = link_fields(END, 0, id);
    put_raw(&out, 4, 0);
    put_uint(&out, 21, 4, (uint32_t)status);
    link_send(&out);
}

static void drain(struct exec *exec, struct source *source, uint8_t channel) {
    int more = source->fd < 0 ? 0 : stream_pump(&exec->stream, source, channel);
    if (more < 0) source_close(source); /* end of file, or a pty without anybody on it */
    else if (more > 0) stream_enqueue(&exec->stream);
}

static void exec_run(struct stream *stream) {
    struct exec *exec = (struct exec *)stream;
    feed(exec);
    drain(exec, &exec->out, exec->pty ? PTY : STDOUT);
    drain(exec, &exec->err, STDERR);
    if (exec->exited && exec->told_to_end) {
        if (!exec->out.readable) source_close(&exec->out);
        if (!exec->err.readable) source_close(&exec->err);
    }
    if (!exec->exited || exec->out.fd >= 0 || exec->err.fd >= 0) return;
    send_end(stream->id, exec->status);
    remember(exec);
    exec->label = NULL; /* `ended` has it now */
    spare_wanted = true;
    stream_drop(stream);
}

static void exec_control(struct stream *stream, uint8_t verb, struct request *request) {
    struct exec *exec = (struct exec *)stream;
    if (verb == 1 && !exec->exited) {
        int signal_number = (int)request_uint(request, 1, 1, 0);
        bool whole_group = request_uint(request, 2, 1, 0);
        if (request->bad) return;
        exec->told_to_end |= signal_number == SIGKILL || signal_number == SIGTERM;
        kill(whole_group ? -exec->pid : exec->pid, signal_number);
    } else if (verb == 2 && exec->pty && exec->out.fd >= 0) {
        struct winsize size = {.ws_col = (unsigned short)request_uint(request, 6, 2, 80), .ws_row = (unsigned short)request_uint(request, 7, 2, 24)};
        if (!request->bad) terminal_resize(exec->out.fd, &size, exec->pid);
    }
}

/* gVisor tells nobody that a terminal has another size, nor who is in its foreground: everybody on it is told. */
void terminal_resize(int master, const struct winsize *size, pid_t session) {
    DIR *processes = ioctl(master, TIOCSWINSZ, size) ? NULL : opendir("/proc");
    if (!processes) return;
    for (struct dirent *entry; (entry = readdir(processes));) {
        pid_t pid = (pid_t)atoi(entry->d_name);
        if (pid > 1 && getsid(pid) == session) kill(pid, SIGWINCH);
    }
    closedir(processes);
}

static const struct kind executing = {
    .run = exec_run, .data = exec_data, .eof = exec_eof, .control = exec_control, .close = exec_close, .lasting = true};

void op_signal(uint32_t id, struct request *request) {
    int64_t pid = (int64_t)request_uint(request, 20, 4, 0);
    int signal_number = (int)request_uint(request, 22, 1, 0);
    bool whole_group = request_uint(request, 23, 1, 0);
    if (request->bad || pid <= 1 || pid > INT_MAX) reply_error(id, EINVAL, "malformed signal");
    else if (kill((pid_t)(whole_group ? -pid : pid), signal_number)) reply_error(id, errno, "pid %d: %s", (int)pid, strerror(errno));
    else reply_ok(id, FIN);
}

/* ---- ending ---- */

/* The process is gone: let go of its ends of the pipes, and see whether anybody else has them. */
static void let_go(struct exec *exec) {
    struct source *sources[] = {&exec->out, &exec->err};
    struct pollfd now[2];
    for (int i = 0; i < 2; i++) {
        close_if(exec->held[i]);
        exec->held[i] = -1;
        now[i] = (struct pollfd){sources[i]->fd, POLLIN, 0};
    }
    if (exec->pty || poll(now, 2, 0) < 0) return;
    for (int i = 0; i < 2; i++) {
        sources[i]->empty = now[i].revents == POLLHUP;
        sources[i]->hangup = now[i].revents & POLLHUP;
        sources[i]->readable = true;
    }
}

void exec_reap(void) {
    int status;
    pid_t pid;
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
        struct exec *exec = execs;
        while (exec && (exec->pid != pid || exec->exited)) exec = exec->next;
        if (!exec) continue; /* an orphan */
        exec->exited = true;
        exec->status = status;
        let_go(exec);
        exec->out.readable |= exec->told_to_end; /* look once more, whatever was noticed before */
        struct out out = link_fields(EVENT, 0, exec->stream.id);
        put_raw(&out, 1, 1);
        put_uint(&out, 21, 4, (uint32_t)status);
        link_send(&out);
        stream_enqueue(&exec->stream);
    }
    children = pid == 0;
}

static void list_one(void (*each)(const struct out *), const struct ended *process, bool exited, bool input) {
    static uint8_t bytes[LABEL_MAX + 256];
    struct out out = {.bytes = bytes, .capacity = sizeof bytes};
    put_uint(&out, 20, 4, (uint32_t)process->pid);
    put_bytes(&out, 10, process->label, process->label_size);
    put_uint(&out, 11, 4, process->id);
    put_uint(&out, 12, 1, (process->pty ? 1 : 0) | (input ? 2 : 0) | (exited ? 4 : 0));
    if (exited) put_uint(&out, 21, 4, (uint32_t)process->status);
    each(&out);
}

void exec_list(void (*each)(const struct out *process)) {
    uint64_t now = now_ms();
    for (size_t i = 0; i < ENDED_MAX; i++) {
        if (!ended[i].id) continue;
        if (now - ended[i].when > ENDED_MS) exec_forget(ended[i].id);
        else list_one(each, &ended[i], true, false);
    }
    for (struct exec *exec = execs; exec; exec = exec->next) {
        struct ended view = {exec->stream.id, exec->pid, exec->status, exec->pty, exec->label, exec->label_size, 0};
        list_one(each, &view, exec->exited, exec->pty || exec->in.fd >= 0);
    }
}

void exec_attached(void) {
    for (struct exec *exec = execs; exec; exec = exec->next) {
        exec->stream.send_window = exec->stream.receive_window = WINDOW;
        exec->stream.consumed = 0;
        exec->debt = exec->input.size;
        exec->out.readable = exec->err.readable = true; /* look, whatever was noticed before */
        stream_enqueue(&exec->stream);
    }
    spare_wanted = true;
    for (size_t i = 0; i < ENDED_MAX; i++)
        if (ended[i].id) send_end(ended[i].id, ended[i].status);
}

bool exec_forget(uint32_t id) {
    for (size_t i = 0; i < ENDED_MAX; i++)
        if (ended[i].id == id) {
            free(ended[i].label);
            ended[i] = (struct ended){0};
            return true;
        }
    return false;
}
