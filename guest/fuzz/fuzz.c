/* Feed an agent random and mutated frames; the same ones for the same seed.
   usage: fuzz <agent> <seed> <seconds>. Exit 0 when the agent lived through it and ended well.
   Run by root, the agent runs as nobody: what it is asked to do is random. */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { FRAME_MAX = 8 + 65536 + 64, ROUNDS_PER_CHECK = 200, NOBODY = 65534 };

static uint64_t state;
static int link_fd, fuse_fd; /* fuse_fd: our end of what stands for the kernel's FUSE device */
static uint8_t frame[FRAME_MAX];
static unsigned long sent, received;

static uint32_t random_number(uint32_t below) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)((state * 2685821657736338717ULL) >> 32) % below;
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static void fail(const char *what) {
    fprintf(stderr, "fuzz: %s after %lu frames (%s)\n", what, sent, strerror(errno));
    exit(1);
}

/* Take what the agent says; it must be whole frames. */
static void drain(void) {
    uint8_t bytes[FRAME_MAX];
    ssize_t got;
    while ((got = recv(link_fd, bytes, sizeof bytes, MSG_DONTWAIT)) > 0) {
        if (got < 8 || got > 8 + 65536 || bytes[2] || bytes[3]) fail("the agent sent a malformed frame");
        received++;
    }
    if (got == 0) fail("the agent ended");
    if (errno != EAGAIN) fail("receiving");
}

static void put(size_t size) {
    sent++;
    while (send(link_fd, frame, size, MSG_DONTWAIT | MSG_NOSIGNAL) < 0) {
        if (errno != EAGAIN) fail("sending");
        drain();
        struct pollfd wait = {link_fd, POLLIN | POLLOUT, 0};
        if (poll(&wait, 1, 20000) == 0) fail("the agent hangs");
    }
}

/* What programs inside ask of volumes, as the kernel words it: mostly whole requests. */
static void ask_volumes(void) {
    uint8_t packet[4096];
    uint32_t size = random_number(8) ? 40 + random_number(100) : random_number(sizeof packet);
    uint64_t unique = random_number(100);
    memset(packet, 0, sizeof packet);
    packet[0] = (uint8_t)size;
    packet[4] = (uint8_t)random_number(50);
    memcpy(packet + 8, &unique, 8);
    if (send(fuse_fd, packet, size, MSG_DONTWAIT | MSG_NOSIGNAL) < 0 && errno != EAGAIN && errno != EPIPE) fail("asking volumes");
    while (recv(fuse_fd, packet, sizeof packet, MSG_DONTWAIT) > 0) {}
}

/* ---- frames that make sense ---- */

static size_t add_field(size_t at, uint8_t tag, const void *value, uint32_t size) {
    frame[at] = tag;
    memcpy(frame + at + 1, &size, 4);
    memcpy(frame + at + 5, value, size);
    return at + 5 + size;
}

static size_t add_random_field(size_t at, const char *directory) {
    static const char *texts[] = {"root", "user", "nobody", "0", "", "~", ".", "a", "a/b/c", "../x", "/bin/true", "/bin/cat",
                                  "/bin/echo", "A=b", "PATH=", "/dev/null", "/proc/self/status", "/etc/passwd"};
    uint8_t tag = (uint8_t)(random_number(8) ? random_number(12) : random_number(256)), bytes[256];
    char path[512];
    switch (random_number(4)) {
    case 0: /* a text */
        snprintf(path, sizeof path, "%s", texts[random_number(sizeof texts / sizeof *texts)]);
        return add_field(at, tag, path, (uint32_t)strlen(path));
    case 1: /* a path to play with: everything that changes files stays below the directory */
        snprintf(path, sizeof path, "%s/%c/%c", directory, 'a' + random_number(4), 'a' + random_number(4));
        return add_field(at, random_number(2) ? 2 : 3, path, (uint32_t)strlen(path));
    default: { /* a number, mostly a small one */
        static const uint8_t sizes[] = {1, 2, 4, 8, 0, 3};
        uint64_t value = random_number(4) ? random_number(70) : state;
        memcpy(bytes, &value, sizeof value);
        return add_field(at, tag, bytes, sizes[random_number(sizeof sizes)]);
    }
    }
}

/* What UNPACK takes: entries, content, removals, with every field a little wrong now and then. */
static size_t add_records(size_t at) {
    static const char *paths[] = {"", "a", "a/b", "a/b/c", "..", "a/../b", "/etc", "a//b", "etc/passwd", "b", "a/b/c/d/e"};
    static const uint32_t modes[] = {0040755, 0100644, 0104755, 0120777, 0010600, 0020600, 0140644, 0, 0177777};
    for (uint32_t i = 1 + random_number(4); i; i--) {
        uint8_t bytes[1024];
        size_t begin = at, size = random_number(64);
        uint32_t mode = modes[random_number(sizeof modes / sizeof *modes)];
        const char *path = paths[random_number(sizeof paths / sizeof *paths)];
        uint64_t number = random_number(4) ? random_number(100) : state;
        for (size_t k = 0; k < sizeof bytes; k++) bytes[k] = (uint8_t)random_number(256);
        memcpy(bytes, &number, sizeof number);
        switch (random_number(5)) {
        case 0: /* content */
            at = add_field(at, 2, bytes, (uint32_t)size);
            break;
        case 1: /* a removal */
            at = add_field(at, 3, path, (uint32_t)strlen(path));
            break;
        default:
            at += 5;
            at = add_field(at, 2, path, (uint32_t)strlen(path));
            at = add_field(at, 5, &mode, 4);
            at = add_field(at, 4, bytes, 8);
            at = add_field(at, 8, bytes, 8);
            if (random_number(3) == 0) at = add_field(at, 9, "target", 6);
            if (random_number(3) == 0) at = add_field(at, 10, "user.a\0b", 8);
            if (random_number(3) == 0) at = add_field(at, 13, "a/b", 3);
            if (random_number(6) == 0) at = add_field(at, (uint8_t)random_number(40), bytes, (uint32_t)size);
            uint32_t length = (uint32_t)(at - begin - 5);
            frame[begin] = 1;
            memcpy(frame + begin + 1, &length, 4);
        }
    }
    return at;
}

static size_t make_frame(const char *directory) {
    static const uint8_t types[] = {0x10, 0x10, 0x10, 0x10, 0x11, 0x12, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18, 0x01, 0x03, 0x05};
    /* No SIGNAL, RELIEVE or REMOVE: they could reach what is not ours. */
    static const uint8_t ops[] = {0x01, 0x10, 0x11, 0x12, 0x15, 0x16, 0x17, 0x18, 0x20, 0x21, 0x30, 0x40, 0x41, 0x50, 0x51, 0x77};
    uint8_t type = types[random_number(sizeof types)];
    uint32_t id = type == 0x01 || type == 0x03 || type == 0x05 ? 0 : 1 + random_number(64);
    memset(frame, 0, 8);
    frame[0] = type;
    frame[1] = (uint8_t)(random_number(6) ? 0 : random_number(4));
    memcpy(frame + 4, &id, 4);
    size_t at = 8;
    if (type == 0x10) frame[at++] = ops[random_number(sizeof ops)];
    if (type == 0x18 || type == 0x15) frame[at++] = 2; /* RESIZE: a random signal could be anything */
    if (type == 0x11 || type == 0x14 || type == 0x16) {
        uint32_t value = random_number(2) ? 0 : random_number(1 << 20);
        memcpy(frame + at, &value, 4);
        at += 4;
    }
    if (type == 0x12 && random_number(2)) return add_records(at);
    if (type == 0x12) return at + random_number(random_number(8) ? 600 : 65536);
    if (type == 0x10 && frame[8] == 0x16) { /* WRITE only where it does no harm */
        char path[512];
        snprintf(path, sizeof path, "%s/%c/%c", directory, 'a' + random_number(4), 'a' + random_number(4));
        at = add_field(at, 1, "root", 4);
        return add_field(at, 2, path, (uint32_t)strlen(path));
    }
    if (type == 0x10 && frame[8] == 0x12) return at;
    for (uint32_t i = random_number(6); i; i--) at = add_random_field(at, directory);
    return at;
}

/* Bend a frame: flip, cut, lengthen; never the op of an OPEN, nor a path. */
static size_t mutate(size_t size) {
    switch (random_number(5)) {
    case 0:
        frame[random_number(2)] = (uint8_t)random_number(256);
        if (frame[0] == 0x06 || frame[0] == 0x10 || frame[0] == 0x18) frame[0] = 0x99;
        break;
    case 1:
        frame[2 + random_number(2)] = (uint8_t)random_number(256);
        break;
    case 2:
        size = random_number((uint32_t)size + 1);
        break;
    case 3: { /* a wrong length of the first field */
        uint32_t length = random_number(3) ? UINT32_MAX - random_number(20) : random_number(70000);
        if (size >= 14) memcpy(frame + 10, &length, 4);
        break;
    }
    default:
        if (frame[0] != 0x10) size = size + random_number(FRAME_MAX - (uint32_t)size);
    }
    return size ? size : 1;
}

/* The agent must still answer: ATTACH is, always. */
static void check_alive(uint64_t epoch) {
    uint16_t version = 1;
    memset(frame, 0, 8);
    frame[0] = 0x01;
    size_t at = add_field(8, 1, &version, 2);
    at = add_field(at, 2, &epoch, 8);
    put(at);
    for (uint8_t bytes[FRAME_MAX];;) {
        struct pollfd wait = {link_fd, POLLIN, 0};
        if (poll(&wait, 1, 20000) == 0) fail("no HELLO");
        ssize_t got = recv(link_fd, bytes, sizeof bytes, MSG_DONTWAIT);
        if (got == 0) fail("the agent ended");
        received++;
        if (got >= 8 + 7 + 13 && bytes[0] == 0x02 && memcmp(bytes + 8 + 7 + 5, &epoch, 8) == 0) return;
    }
}

static pid_t start(const char *agent, const char *directory) {
    int pair[2], fuse[2];
    char number[16], fuse_number[16];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair) || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, fuse)) fail("socketpair");
    int size = 1 << 20;
    setsockopt(pair[0], SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
    snprintf(number, sizeof number, "%d", pair[1]);
    snprintf(fuse_number, sizeof fuse_number, "%d", fuse[1]);
    pid_t pid = fork();
    if (pid == 0) {
        close(pair[0]);
        close(fuse[0]);
        if (geteuid() == 0 && (chown(directory, NOBODY, NOBODY) || setgroups(0, NULL) || setgid(NOBODY) || setuid(NOBODY))) _exit(126);
        execl(agent, agent, "--native", directory, "--link", number, "--fuse", fuse_number, (char *)NULL);
        _exit(127);
    }
    close(pair[1]);
    close(fuse[1]);
    link_fd = pair[0];
    fuse_fd = fuse[0];
    return pid;
}

static void write_text(const char *directory, const char *name, const char *text) {
    char path[600];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    FILE *file = fopen(path, "w");
    if (!file || fputs(text, file) < 0 || fclose(file)) fail(path);
}

static void remove_tree(const char *directory) {
    pid_t pid = fork();
    if (pid == 0) {
        execlp("rm", "rm", "-rf", "--", directory, (char *)NULL);
        _exit(127);
    }
    waitpid(pid, NULL, 0);
}

int main(int argc, char **argv) {
    if (argc != 4) return 2;
    char directory[] = "/tmp/wardian-fuzz-XXXXXX", etc[64], passwd[512];
    int status, own = geteuid() ? (int)geteuid() : NOBODY;
    state = strtoull(argv[2], NULL, 10) * 0x9E3779B97F4A7C15ULL + 1;
    if (!mkdtemp(directory) || chmod(directory, 0755)) fail("mkdtemp");
    snprintf(etc, sizeof etc, "%s/etc", directory);
    if (mkdir(etc, 0755)) fail(etc);
    snprintf(passwd, sizeof passwd, "root:x:%d:0::%s:/bin/sh\nuser:x:%d:1000::%s:/bin/sh\nother:x:5:5::/:/bin/sh\n", own, directory, own, directory);
    write_text(directory, "etc/passwd", passwd);
    write_text(directory, "etc/group", "root:x:0:\n");
    pid_t pid = start(argv[1], directory);
    double end = now() + atof(argv[3]);
    for (uint64_t epoch = 1; now() < end; epoch++) {
        for (int i = 0; i < ROUNDS_PER_CHECK; i++) {
            size_t size = make_frame(directory);
            if (random_number(3) == 0) size = mutate(size);
            put(size);
            drain();
            if (random_number(4) == 0) ask_volumes();
        }
        check_alive(epoch);
    }
    close(link_fd);
    if (waitpid(pid, &status, 0) != pid || !WIFEXITED(status) || WEXITSTATUS(status)) {
        fprintf(stderr, "fuzz: the agent ended with status %#x\n", status);
        return 1;
    }
    remove_tree(directory);
    printf("fuzz: %lu frames sent, %lu received\n", sent, received);
    return 0;
}
