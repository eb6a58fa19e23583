/* wardian-guest: pid 1 in every machine. Settings, and the one loop everything happens in. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "agent.h"
#include "ferry.h"

struct settings settings = {.link = 7, .stream = -1, .listener = -1, .upper = -1, .redirect = -1, .dns = -1, .fuse = -1};
int epoll_fd;
static struct source signals;
static enum {
    RUNNING,
    SETTLING, /* volumes' last answers are awaited */
    DRAINING, /* QUIESCED waits behind what is still to be sent */
    QUIET,
} state;

void say(const char *format, ...) {
    va_list values;
    va_start(values, format);
    fputs("wardian-guest: ", stderr);
    vfprintf(stderr, format, values);
    fputc('\n', stderr);
    va_end(values);
}

uint64_t now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

int source_add(struct source *source, uint32_t events) {
    struct epoll_event event = {.events = events | EPOLLET, .data = {.ptr = source}};
    if (source->fd < 0) return EBADF;
    source->events = events;
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, source->fd, &event) == 0) return 0;
    int error = errno;
    source_close(source);
    return error;
}

static void modify(struct source *source, uint32_t more) {
    struct epoll_event event = {.events = source->events | more | EPOLLET, .data = {.ptr = source}};
    epoll_ctl(epoll_fd, EPOLL_CTL_MOD, source->fd, &event);
}

void source_await_writable(struct source *source) {
    source->writable = false;
    modify(source, EPOLLOUT);
}

static bool helped; /* there was a helper, which for a moment held every descriptor of ours */

pid_t fork_helper(void) {
    helped = true;
    ferry_lock(); /* a helper allocates, and may only when nobody else was in the middle of that as it was made */
    pid_t pid = fork();
    ferry_unlock();
    return pid;
}

/* What we close while a helper still holds it would stay in the epoll set, with its source long freed. */
void source_close(struct source *source) {
    if (source->fd >= 0 && helped) epoll_ctl(epoll_fd, EPOLL_CTL_DEL, source->fd, NULL);
    if (source->fd >= 0) close(source->fd);
    source->fd = -1;
}

/* ---- quiesce ---- */

bool quiescing(void) { return state != RUNNING; }

void quiesce_begin(void) {
    if (state != RUNNING) return;
    state = SETTLING;
    ferry_rest(true);
}

static void settle(void) {
    if (!volumes_rest()) return;
    state = DRAINING;
    link_put(QUIESCED, 0, 0, NULL, 0);
}

void quiesce_end(void) {
    if (state != RUNNING) ferry_rest(false);
    state = RUNNING;
}

/* Everything has been sent: touch nothing but the link until the host says so. A capture may happen at any moment here. */
static void stay_quiet(void) {
    state = QUIET;
    link_trim();
    while (state == QUIET) {
        struct pollfd wait = {ferry_runs() ? ferry_descriptor() : settings.link, POLLIN, 0};
        if (poll(&wait, 1, -1) <= 0) continue;
        link_note_readable();
        while (state == QUIET && link_receive()) {}
        link_flush_all();
    }
}

/* ---- the loop ---- */

static void note(struct source *source) { (void)source; }

static void handle_signals(void) {
    struct signalfd_siginfo infos[8];
    if (!signals.readable) return;
    signals.readable = read(signals.fd, infos, sizeof infos) == sizeof infos;
    exec_reap();
}

static void wait_for_events(void) {
    struct epoll_event events[64];
    bool at_once = stream_runnable() || link_readable() || signals.readable;
    int count = epoll_wait(epoll_fd, events, 64, at_once ? 0 : guard_timeout());
    for (int i = 0; i < count; i++) {
        struct source *source = events[i].data.ptr;
        uint32_t seen = events[i].events;
        if (source->fd < 0) continue;
        if (seen & EPOLLOUT && !source->writable) modify(source, 0);
        if (seen & (EPOLLIN | EPOLLHUP | EPOLLERR | EPOLLRDHUP)) source->readable = true;
        if (seen & (EPOLLOUT | EPOLLHUP | EPOLLERR)) source->writable = true;
        if (seen & (EPOLLHUP | EPOLLERR | EPOLLRDHUP)) source->hangup = true;
        if (seen == EPOLLHUP) source->empty = true;
        source->wake(source);
    }
}

static void loop(void) {
    for (;;) {
        wait_for_events();
        while (link_receive() && !stream_runnable()) {}
        if (state == RUNNING) {
            handle_signals();
            tunnel_accept();
            sudo_accept();
            stream_run_queue();
            guard_check();
        }
        if (state == SETTLING) settle();
        bool sent = link_flush();
        if (state == DRAINING && sent) stay_quiet();
        if (state == RUNNING) exec_get_ready();
        stream_bury();
    }
}

static void start_signals(void) {
    sigset_t mask;
    if (settings.native) /* pid 1 inherits nothing; a host's shell may have us ignore SIGINT, and so our children */
        for (int signal_number = 1; signal_number < _NSIG; signal_number++) signal(signal_number, SIG_DFL);
    sigemptyset(&mask);
    sigaddset(&mask, SIGCHLD);
    sigaddset(&mask, SIGPIPE); /* blocked, not ignored: children get a clean mask but would inherit an ignored signal */
    sigprocmask(SIG_SETMASK, &mask, NULL);
    sigdelset(&mask, SIGPIPE);
    signals = (struct source){.fd = signalfd(-1, &mask, SFD_CLOEXEC | SFD_NONBLOCK), .wake = note};
    if (source_add(&signals, EPOLLIN)) exit(1);
}

static int number(const char *text) {
    char *end;
    long value = text ? strtol(text, &end, 10) : -1;
    if (value < 0 || value > INT_MAX || *end) {
        say("not a number: %s", text ? text : "nothing");
        exit(2);
    }
    return (int)value;
}

/* --processes-max N; --link FD; --stream FD: the link is a byte stream; --listen FD: it is that of whoever connects
   there last; --upper FD: where an overlay keeps what was changed; for tests on a host: --native DIR [--redirect FD] [--dns FD] [--fuse FD] */
static void read_arguments(char **argv) {
    for (argv++; *argv; argv += 2) {
        if (!strcmp(argv[0], "--processes-max")) settings.processes_max = (unsigned)number(argv[1]);
        else if (!strcmp(argv[0], "--link")) settings.link = number(argv[1]);
        else if (!strcmp(argv[0], "--stream")) settings.stream = number(argv[1]);
        else if (!strcmp(argv[0], "--listen")) settings.listener = number(argv[1]);
        else if (!strcmp(argv[0], "--upper")) settings.upper = number(argv[1]);
        else if (!strcmp(argv[0], "--redirect")) settings.redirect = number(argv[1]);
        else if (!strcmp(argv[0], "--dns")) settings.dns = number(argv[1]);
        else if (!strcmp(argv[0], "--fuse")) settings.fuse = number(argv[1]);
        else if (!strcmp(argv[0], "--native") && argv[1]) settings.native = argv[1];
        else {
            say("unknown argument: %s", argv[0]);
            exit(2);
        }
    }
}

int main(int argc, char **argv) {
    (void)argc;
    read_arguments(argv);
    while (true) { /* our descriptors must not be 0, 1 or 2, which children get new ones for */
        int fd = open("/dev/null", O_RDWR | O_CLOEXEC);
        if (fd > 2) close(fd);
        if (fd > 2 || fd < 0) break;
    }
    umask(022);
    if (settings.native) prctl(PR_SET_CHILD_SUBREAPER, 1);
    else machine_setup();
    if (settings.upper >= 0) fcntl(settings.upper, F_SETFD, FD_CLOEXEC);
    if (settings.stream >= 0 || settings.listener >= 0) port_start();
    fcntl(settings.link, F_SETFD, FD_CLOEXEC);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    start_signals();
    tunnel_listen();
    sudo_listen();
    link_start();
    loop();
}
