/* toil WORK: does some of one kind of work, and prints how many milliseconds it took. */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { BUFFER = 8 << 20, FILES = 200, FILE_SIZE = 4096 };

static volatile uint64_t sink;

static void integer(void) {
    uint64_t x = 88172645463325252u, sum = 0;
    for (int i = 0; i < 10000000; i++) {
        x ^= x << 13, x ^= x >> 7, x ^= x << 17;
        sum += x % 1000003;
    }
    sink = sum;
}

static void floating(void) {
    double x = 0.5, sum = 0;
    for (int i = 1; i < 10000000; i++) {
        x = 3.9 * x * (1 - x);
        sum += x / i;
    }
    sink = (uint64_t)(sum * 1e9);
}

static void copy(void) {
    static char from[BUFFER], to[BUFFER];
    memset(from, 1, sizeof from);
    for (int i = 0; i < 20; i++) {
        memcpy(to, from, sizeof to);
        from[i] = to[BUFFER - 1 - i];
    }
    sink = (uint64_t)to[BUFFER / 2];
}

static void syscalls(void) {
    for (int i = 0; i < 50000; i++) sink = (uint64_t)syscall(SYS_getppid);
}

static void files(void) {
    char path[64], bytes[FILE_SIZE] = "x";
    for (int i = 0; i < FILES; i++) {
        snprintf(path, sizeof path, "/tmp/toil-%d", i);
        int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
        if (fd < 0 || write(fd, bytes, sizeof bytes) < 0 || pread(fd, bytes, sizeof bytes, 0) < 0) exit(1);
        close(fd);
        unlink(path);
    }
}

static void start(char *const argv[]) {
    int status;
    pid_t child = vfork();
    if (!child) {
        execv(argv[0], argv);
        _exit(127);
    }
    if (child < 0 || waitpid(child, &status, 0) < 0 || status) exit(1);
}

static void spawn(void) {
    for (int i = 0; i < 20; i++) start((char *[]){"/bin/true", NULL});
}

static void python(void) { start((char *[]){"/usr/bin/python3", "-c", "pass", NULL}); }

static void compile(void) {
    start((char *[]){"/usr/bin/python3", "-c", "import argparse as a; compile(open(a.__file__).read(), 'a', 'exec')", NULL});
}

static const struct {
    const char *name;
    void (*work)(void);
} works[] = {{"integer", integer}, {"float", floating}, {"copy", copy}, {"syscalls", syscalls}, {"files", files},
             {"spawn", spawn},     {"python", python},  {"compile", compile}};

int main(int argc, char **argv) {
    for (size_t i = 0; argc == 2 && i < sizeof works / sizeof *works; i++) {
        struct timespec from, to;
        if (strcmp(works[i].name, argv[1])) continue;
        clock_gettime(CLOCK_MONOTONIC, &from);
        works[i].work();
        clock_gettime(CLOCK_MONOTONIC, &to);
        printf("%.3f\n", (double)(to.tv_sec - from.tv_sec) * 1e3 + (double)(to.tv_nsec - from.tv_nsec) / 1e6);
        return 0;
    }
    return 2;
}
