/* sudo. gVisor ignores set-user-ID bits, so a user's sudo cannot become root: it asks us, who are. Each request gets a
   process of its own, which checks who asks, starts the program and stays beside it; the agent only lets it in.

   A request is a packet of numbers and four descriptors (stdin, stdout, stderr, working directory), then strings: user,
   directory ("" for the descriptor), arguments, environment. Then each byte is a signal; our answer is a wait status. */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include "agent.h"

static const char NAME[] = "\0wardian-sudo"; /* abstract: no file to remove or to replace */
enum { TEXT_MAX = REQUEST_MAX, STRINGS_MAX = 1 << 16, FDS = 4 };
enum { IN, OUT, ERR, CWD };

struct numbers {
    uint32_t size, arguments, variables, terminal;
};
struct asked {
    struct numbers numbers;
    struct ucred peer; /* not SO_PEERCRED: gVisor answers that with our own */
    int fds[FDS];
    char *user, *directory, **argv, **envp;
};

static void wake(struct source *source) { (void)source; }
static struct source knocks = {.fd = -1, .wake = wake};

void sudo_listen(void) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (settings.native) return;
    memcpy(address.sun_path, NAME, sizeof NAME - 1);
    knocks.fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (knocks.fd < 0 || bind(knocks.fd, (struct sockaddr *)&address, offsetof(struct sockaddr_un, sun_path) + sizeof NAME - 1) ||
        listen(knocks.fd, 64) || source_add(&knocks, EPOLLIN)) {
        say("no sudo: %s", strerror(errno));
        source_close(&knocks);
    }
}

static bool read_all(int fd, void *to, size_t size) {
    for (char *at = to; size;) {
        ssize_t got = read(fd, at, size);
        if (got <= 0 && !(got < 0 && errno == EINTR)) return false;
        if (got > 0) at += got, size -= (size_t)got;
    }
    return true;
}

static bool write_all(int fd, const void *from, size_t size) {
    for (const char *at = from; size;) {
        ssize_t put = write(fd, at, size);
        if (put <= 0 && !(put < 0 && errno == EINTR)) return false;
        if (put > 0) at += put, size -= (size_t)put;
    }
    return true;
}

/* The numbers, exactly the descriptors that belong to them, and who the kernel says has sent them. */
static bool receive_numbers(int connection, struct asked *asked) {
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof asked->fds) + CMSG_SPACE(sizeof asked->peer)];
    } control;
    bool fds = false, peer = false;
    struct iovec iov = {&asked->numbers, sizeof asked->numbers};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    if (recvmsg(connection, &message, MSG_CMSG_CLOEXEC) != sizeof asked->numbers || message.msg_flags & MSG_CTRUNC) return false;
    for (struct cmsghdr *part = CMSG_FIRSTHDR(&message); part; part = CMSG_NXTHDR(&message, part)) {
        if (part->cmsg_type == SCM_RIGHTS && part->cmsg_len == CMSG_LEN(sizeof asked->fds)) {
            memcpy(asked->fds, CMSG_DATA(part), sizeof asked->fds);
            fds = true;
        } else if (part->cmsg_type == SCM_CREDENTIALS && part->cmsg_len == CMSG_LEN(sizeof asked->peer)) {
            memcpy(&asked->peer, CMSG_DATA(part), sizeof asked->peer);
            peer = true;
        }
    }
    return fds && peer;
}

static bool receive(int connection, struct asked *asked) {
    if (!receive_numbers(connection, asked)) return false;
    const struct numbers *numbers = &asked->numbers;
    size_t strings = 2 + (size_t)numbers->arguments + numbers->variables;
    if (!numbers->size || numbers->size > TEXT_MAX || !numbers->arguments || numbers->arguments > STRINGS_MAX ||
        numbers->variables > STRINGS_MAX)
        return false;
    char *text = malloc(numbers->size), **pointers = calloc(strings + 2, sizeof *pointers);
    if (!text || !pointers || !read_all(connection, text, numbers->size) || text[numbers->size - 1]) return false;
    char *at = text, *end = text + numbers->size;
    asked->argv = pointers;
    asked->envp = pointers + numbers->arguments + 1;
    for (size_t i = 0; i < strings; i++, at += strlen(at) + 1) {
        if (at >= end) return false;
        if (i == 0) asked->user = at;
        else if (i == 1) asked->directory = at;
        else if (i - 2 < numbers->arguments) asked->argv[i - 2] = at;
        else asked->envp[i - 2 - numbers->arguments] = at;
    }
    return at == end;
}

/* root, and the members of the group sudo. */
static bool may_ask(uid_t uid) {
    char number[16];
    if (uid == 0) return true;
    snprintf(number, sizeof number, "%u", uid);
    const struct user *user = user_find(number);
    for (size_t i = 0; user && i < user->group_count; i++)
        if (!strcmp(group_name(user->groups[i]), "sudo")) return true;
    return false;
}

static _Noreturn void finish(int connection, int status) {
    write_all(connection, &status, sizeof status);
    _exit(0);
}

static _Noreturn void become(const struct asked *asked, const struct user *user, int terminal) {
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    setsid();
    for (int i = IN; i <= ERR; i++) dup2(terminal >= 0 && isatty(asked->fds[i]) ? terminal : asked->fds[i], i);
    if (terminal >= 0) ioctl(terminal, TIOCSCTTY, 0);
    if ((*asked->directory ? chdir(asked->directory) : fchdir(asked->fds[CWD])) && chdir("/")) _exit(1);
    if (setgroups(user->group_count, user->groups) || setresgid(user->gid, user->gid, user->gid) ||
        setresuid(user->uid, user->uid, user->uid)) {
        dprintf(2, "sudo: cannot become %s: %s\n", user->name, strerror(errno));
        _exit(1);
    }
    environ = asked->envp;
    execvp(asked->argv[0], asked->argv);
    dprintf(2, "sudo: %s: %s\n", asked->argv[0], errno == ENOENT ? "command not found" : strerror(errno));
    _exit(1);
}

/* A terminal for the program, of the size of the asker's: its own is of another session. Returns the master, or -1. */
static int make_terminal(const struct asked *asked, int *slave) {
    struct winsize size;
    int unlock = 0;
    unsigned number;
    char name[32];
    if (!asked->numbers.terminal || !isatty(asked->fds[IN]) || ioctl(asked->fds[IN], TIOCGWINSZ, &size)) return -1;
    int master = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (master < 0 || ioctl(master, TIOCSPTLCK, &unlock) || ioctl(master, TIOCGPTN, &number)) return -1;
    snprintf(name, sizeof name, "/dev/pts/%u", number);
    *slave = open(name, O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (*slave < 0) return -1;
    ioctl(master, TIOCSWINSZ, &size);
    return master;
}

/* One piece of what can be read; false when there will be no more. */
static bool copy(int from, int to) {
    char bytes[16384];
    ssize_t got = read(from, bytes, sizeof bytes);
    if (got < 0 && (errno == EINTR || errno == EAGAIN)) return true;
    return got > 0 && write_all(to, bytes, (size_t)got);
}

/* Signals of the asker, byte by byte; false when it is gone. */
static bool pass_signals(int connection, const struct asked *asked, pid_t pid, int master) {
    uint8_t signals[16];
    ssize_t got = read(connection, signals, sizeof signals);
    for (ssize_t i = 0; i < got; i++) {
        struct winsize size;
        if (signals[i] != SIGWINCH) kill(master >= 0 ? pid : -pid, signals[i]);
        else if (master >= 0 && !ioctl(asked->fds[IN], TIOCGWINSZ, &size)) terminal_resize(master, &size, pid);
    }
    if (got > 0 || (got < 0 && errno == EINTR)) return true;
    kill(-pid, SIGHUP);
    return false;
}

/* Stay beside the program until it ends. */
static _Noreturn void attend(int connection, const struct asked *asked, pid_t pid, int master, int ends) {
    struct pollfd watched[] = {
        {connection, POLLIN, 0}, {ends, POLLIN, 0}, {master, POLLIN, 0}, {master < 0 ? -1 : asked->fds[IN], POLLIN, 0}};
    int status;
    for (;;) {
        if (poll(watched, 4, -1) < 0) continue;
        if (watched[0].revents && !pass_signals(connection, asked, pid, master)) watched[0].fd = -1;
        if (watched[2].revents && !copy(master, asked->fds[OUT])) watched[2].fd = -1;
        if (watched[3].revents && !copy(asked->fds[IN], master)) watched[3].fd = -1;
        if (!watched[1].revents || waitpid(pid, &status, WNOHANG) != pid) continue;
        for (fcntl(master, F_SETFL, O_NONBLOCK); master >= 0;) { /* its last words */
            struct pollfd rest = {master, POLLIN, 0};
            if (poll(&rest, 1, 0) <= 0 || !(rest.revents & POLLIN) || !copy(master, asked->fds[OUT])) break;
        }
        finish(connection, status);
    }
}

static _Noreturn void serve(int connection) {
    struct asked asked = {0};
    sigset_t mask;
    int slave = -1;
    if (connection != 3) dup2(connection, 3);
    if (syscall(SYS_close_range, 4u, (unsigned)INT_MAX, 0u)) _exit(1); /* gVisor takes no more than INT_MAX */
    fcntl(3, F_SETFD, FD_CLOEXEC);
    if (setsockopt(3, SOL_SOCKET, SO_PASSCRED, &(int){1}, sizeof(int)) || !receive(3, &asked)) _exit(1);
    const struct user *user = may_ask(asked.peer.uid) ? user_find(asked.user) : NULL;
    if (!user) {
        dprintf(asked.fds[ERR], "sudo: not for you, or no such user: %.64s\n", asked.user);
        finish(3, 1 << 8);
    }
    sigemptyset(&mask);
    sigaddset(&mask, SIGCHLD);
    sigaddset(&mask, SIGPIPE);
    sigprocmask(SIG_SETMASK, &mask, NULL);
    sigdelset(&mask, SIGPIPE);
    int ends = signalfd(-1, &mask, SFD_CLOEXEC | SFD_NONBLOCK), master = make_terminal(&asked, &slave);
    pid_t pid = fork();
    if (pid == 0) become(&asked, user, master < 0 ? -1 : slave);
    if (pid < 0) finish(3, 1 << 8);
    if (slave >= 0) close(slave);
    for (int i = IN; i < FDS && master < 0; i++) close(asked.fds[i]); /* the program's alone, so that they end with it */
    attend(3, &asked, pid, master, ends);
}

void sudo_accept(void) {
    while (knocks.fd >= 0 && knocks.readable) {
        int connection = accept4(knocks.fd, NULL, NULL, SOCK_CLOEXEC);
        if (connection < 0) {
            knocks.readable = errno == EINTR;
            continue;
        }
        if (fork_helper() == 0) serve(connection);
        close(connection);
    }
}
