/* PACK and UNPACK: a helper process does the work, and the agent only carries bytes between it and the host. */
#include "carry.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "agent.h"

enum { PIPE_SIZE = 1 << 20 }; /* so that neither side waits for the other at every frame */

/* ---- in the helper ---- */

void carry_write(const void *bytes, size_t size) {
    for (const uint8_t *at = bytes; size;) {
        ssize_t put = write(1, at, size);
        if (put < 0 && errno == EINTR) continue;
        if (put <= 0) _exit(1);
        at += put;
        size -= (size_t)put;
    }
}

void carry_fail(int error, const char *path) {
    uint8_t bytes[PATH_MAX + 256];
    char message[PATH_MAX + 128];
    struct out out = {.bytes = bytes, .capacity = sizeof bytes};
    snprintf(message, sizeof message, "/%s: %s", path ? path : "", strerror(error));
    size_t mark = nest_begin(&out, RECORD_FAILED);
    put_uint(&out, ENTRY_SIZE, 4, (uint32_t)error);
    put_text(&out, ENTRY_PATH, message);
    nest_end(&out, mark);
    carry_write(out.bytes, out.size);
    _exit(1);
}

void carry_done(void) {
    uint8_t bytes[16];
    struct out out = {.bytes = bytes, .capacity = sizeof bytes};
    put_bytes(&out, RECORD_DONE, NULL, 0);
    carry_write(out.bytes, out.size);
    _exit(0);
}

static _Noreturn void help(void (*work)(void), int in, int out) {
    sigset_t none;
    struct rlimit files;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL); /* SIGPIPE ends us when the agent has lost interest */
    int high_in = fcntl(in, F_DUPFD, 10), high_out = fcntl(out, F_DUPFD, 10);
    if (dup2(high_in, 0) < 0 || dup2(high_out, 1) < 0) _exit(1);
    if (settings.upper >= 0 && dup2(settings.upper, 3) < 0) _exit(1);
    if (settings.upper >= 0) settings.upper = 3;
    if (syscall(SYS_close_range, settings.upper >= 0 ? 4u : 3u, (unsigned)INT_MAX, 0u)) _exit(1);
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) { /* one descriptor for each level of the tree */
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    umask(0);
    work();
    _exit(1);
}

/* ---- in the agent ---- */

struct carrier {
    struct stream stream;
    struct source out, in; /* from the helper, to it */
    struct backlog input;
    bool holds;
};

static void carrier_close(struct stream *stream) {
    struct carrier *carrier = (struct carrier *)stream;
    source_close(&carrier->out);
    source_close(&carrier->in);
    backlog_free(&carrier->input);
    if (carrier->holds) hold_everything(false);
}

static void feed(struct carrier *carrier) {
    struct source *to = &carrier->in;
    while (carrier->input.size && to->fd >= 0 && to->writable) {
        ssize_t put = write(to->fd, carrier->input.bytes + carrier->input.start, carrier->input.size);
        if (put >= 0) {
            backlog_take(&carrier->input, (size_t)put);
            stream_grant(&carrier->stream, (size_t)put);
        } else if (errno == EAGAIN) {
            source_await_writable(to);
        } else if (errno != EINTR) { /* it has ended: what it said is on its way to the host */
            source_close(to);
            break;
        }
    }
    if (to->fd < 0) backlog_free(&carrier->input);
    if (carrier->stream.host_eof && !carrier->input.size) source_close(to);
}

static void carrier_data(struct stream *stream, const uint8_t *bytes, size_t size) {
    struct carrier *carrier = (struct carrier *)stream;
    if (carrier->in.fd < 0) return;
    if (backlog_add(&carrier->input, bytes, size)) feed(carrier);
    else stream_end(stream, ENOMEM);
}

static void carrier_eof(struct stream *stream) { feed((struct carrier *)stream); }

static void carrier_run(struct stream *stream) {
    struct carrier *carrier = (struct carrier *)stream;
    feed(carrier);
    int more = stream_pump(stream, &carrier->out, 0);
    if (more < 0) stream_end(stream, (uint32_t)(-1 - more));
    else if (more > 0) stream_enqueue(stream);
}

static const struct kind packing = {.run = carrier_run, .close = carrier_close};
static const struct kind unpacking = {.run = carrier_run, .data = carrier_data, .eof = carrier_eof, .close = carrier_close};

/* Watch our ends of the pipes; errno, and then they are closed. */
static int watch(struct carrier *carrier, int from, int to) {
    carrier->out = carrier->in = (struct source){.fd = -1, .wake = stream_wake, .owner = &carrier->stream, .writable = true, .flows = true};
    fcntl(from, F_SETPIPE_SZ, PIPE_SIZE);
    fcntl(to, F_SETPIPE_SZ, PIPE_SIZE);
    fcntl(from, F_SETFL, O_NONBLOCK);
    fcntl(to, F_SETFL, O_NONBLOCK);
    carrier->out.fd = from;
    carrier->in.fd = to;
    int error = source_add(&carrier->out, EPOLLIN);
    return error ? error : source_add(&carrier->in, 0);
}

static void carry(uint32_t id, const struct kind *kind, void (*work)(void), bool hold) {
    int down[2] = {-1, -1}, up[2] = {-1, -1};
    if (pipe2(down, O_CLOEXEC) || pipe2(up, O_CLOEXEC)) {
        int error = errno;
        if (down[0] >= 0) {
            close(down[0]);
            close(down[1]);
        }
        reply_error(id, error, "no pipe: %s", strerror(error));
        return;
    }
    struct carrier *carrier = stream_new(sizeof *carrier, kind, id);
    int error = carrier ? watch(carrier, up[0], down[1]) : ENOMEM;
    if (!carrier) {
        close(up[0]);
        close(down[1]);
    }
    if (!error && hold) {
        hold_everything(true);
        carrier->holds = true;
    }
    pid_t pid = error ? -1 : fork_helper();
    if (pid == 0) help(work, down[0], up[1]);
    if (!error && pid < 0) error = errno;
    close(down[0]);
    close(up[1]);
    if (error) {
        reply_error(id, error, "no helper: %s", strerror(error));
        if (carrier) stream_drop(&carrier->stream);
        return;
    }
    reply_ok(id, 0);
}

void op_pack(uint32_t id, struct request *request) {
    bool hold = request_uint(request, 6, 1, 0);
    if (request->bad) reply_error(id, EINVAL, "malformed fields");
    else carry(id, &packing, pack_files, hold);
}

void op_unpack(uint32_t id, struct request *request) {
    (void)request;
    carry(id, &unpacking, unpack_files, false);
}
