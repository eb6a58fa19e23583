/* Keeping the machine alive: memory relief, the fork guard, and what STATS tells. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statfs.h>
#include <sys/sysinfo.h>
#include <time.h>
#include <unistd.h>

#include "agent.h"

enum { GUARD_CALM_MS = 250, GUARD_BUSY_MS = 50, PIDS_MAX = 32768, ROUNDS = 20 };

static uint64_t guard_last;
static bool guard_busy;

static ssize_t slurp(const char *path, char *buffer, size_t capacity) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t got = fd < 0 ? -1 : read(fd, buffer, capacity - 1);
    if (fd >= 0) close(fd);
    buffer[got > 0 ? got : 0] = 0;
    return got;
}

/* Every process but pid 1 and, run natively, only those of our own making. Never allocates. */
static size_t list_pids(pid_t *pids, size_t max) {
    static char bytes[16 << 10];
    size_t count = 0;
    int fd = open("/proc", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return 0;
    for (ssize_t got; (got = getdents64(fd, bytes, sizeof bytes)) > 0;)
        for (ssize_t at = 0; at < got;) {
            const struct dirent64 *entry = (void *)(bytes + at);
            int pid = atoi(entry->d_name);
            if (pid > 1 && pid != getpid() && count < max) pids[count++] = pid;
            at += entry->d_reclen;
        }
    close(fd);
    return count;
}

static pid_t pids[PIDS_MAX];

static void process_name(pid_t pid, char *name, size_t capacity) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/comm", pid);
    slurp(path, name, capacity);
    name[strcspn(name, "\n")] = 0;
}

static void notice(const char *kind, pid_t pid, const char *name, uint64_t bytes, uint32_t killed) {
    struct out out = link_fields(NOTICE, 0, 0);
    put_text(&out, 1, kind);
    put_uint(&out, 2, 4, (uint32_t)pid);
    put_text(&out, 3, name);
    put_uint(&out, 4, 8, bytes);
    put_uint(&out, 5, 4, killed);
    link_send(&out);
}

static uint64_t resident_bytes(pid_t pid) {
    char path[64], text[256];
    unsigned long resident = 0;
    snprintf(path, sizeof path, "/proc/%d/statm", pid);
    if (slurp(path, text, sizeof text) <= 0 || sscanf(text, "%*u %lu", &resident) != 1) return 0;
    return (uint64_t)resident * (uint64_t)sysconf(_SC_PAGESIZE);
}

static bool ours(pid_t pid) { /* natively there are others' processes too */
    if (!settings.native) return true;
    char path[64], text[512];
    for (int i = 0; pid > 1 && i < 64; i++) {
        snprintf(path, sizeof path, "/proc/%d/stat", pid);
        const char *end = slurp(path, text, sizeof text) > 0 ? strrchr(text, ')') : NULL;
        if (!end || sscanf(end + 1, " %*c %d", &pid) != 1) return false;
        if (pid == getpid()) return true;
    }
    return false;
}

void relieve(void) {
    uint64_t biggest = 0;
    pid_t victim = 0;
    char name[64];
    size_t count = list_pids(pids, PIDS_MAX);
    for (size_t i = 0; i < count; i++) {
        uint64_t bytes = resident_bytes(pids[i]);
        if (bytes <= biggest || !ours(pids[i])) continue;
        biggest = bytes;
        victim = pids[i];
    }
    if (!victim) return;
    process_name(victim, name, sizeof name);
    if (kill(victim, SIGKILL) == 0) notice("oom_kill", victim, name, biggest, 1);
}

/* ---- the fork guard ---- */

static unsigned process_count(void) {
    struct sysinfo info;
    return sysinfo(&info) ? 0 : info.procs;
}

static int by_session(const void *a, const void *b) { return ((const pid_t *)a)[1] - ((const pid_t *)b)[1]; }

/* The session with the most processes, and how many they are, out of `all`. */
static pid_t biggest_session(size_t *size, size_t *all) {
    static pid_t pairs[PIDS_MAX / 4][2];
    size_t count = list_pids(pids, PIDS_MAX / 4), used = 0;
    for (size_t i = 0; i < count; i++) {
        pid_t session = getsid(pids[i]);
        if (session <= 0 || !ours(pids[i])) continue;
        pairs[used][0] = pids[i];
        pairs[used++][1] = session;
    }
    qsort(pairs, used, sizeof *pairs, by_session);
    pid_t biggest = 0;
    *size = 0;
    *all = used;
    for (size_t i = 0, from = 0; i < used; i++) {
        if (pairs[i][1] != pairs[from][1]) from = i;
        if (i - from + 1 > *size) {
            *size = i - from + 1;
            biggest = pairs[i][1];
        }
    }
    return biggest;
}

/* Kill every process of the session, again and again until no new one has come. */
static uint32_t kill_session(pid_t session) {
    uint32_t killed = 0;
    for (int round = 0; round < ROUNDS; round++) {
        if (kill(-session, SIGKILL) && errno == EPERM) return killed;
        size_t count = list_pids(pids, PIDS_MAX), found = 0;
        for (size_t i = 0; i < count; i++)
            if (getsid(pids[i]) == session && kill(pids[i], SIGKILL) == 0) found++;
        if (found > killed) killed = (uint32_t)found;
        exec_reap();
        if (!found) break;
    }
    return killed;
}

static void stop_bomb(void) {
    size_t size, all;
    char name[64];
    pid_t session = biggest_session(&size, &all);
    if (!session || all <= settings.processes_max) return;
    process_name(session, name, sizeof name);
    if (size < all / 4 && !settings.native) { /* they flee into sessions of their own: everything must go */
        kill(-1, SIGKILL);
        notice("fork_guard", session, "every process", 0, (uint32_t)all);
        return;
    }
    uint32_t killed = kill_session(session);
    notice("fork_guard", session, name, 0, killed > size ? killed : (uint32_t)size);
}

int guard_timeout(void) {
    if (!settings.processes_max || !processes_exist()) return -1;
    uint64_t passed = now_ms() - guard_last, interval = guard_busy ? GUARD_BUSY_MS : GUARD_CALM_MS;
    return passed >= interval ? 0 : (int)(interval - passed);
}

void guard_start(void) { guard_last = now_ms(); }

void guard_check(void) {
    if (guard_timeout() != 0) return;
    unsigned count = process_count();
    guard_last = now_ms();
    guard_busy = count > settings.processes_max / 4;
    if (count > settings.processes_max) stop_bomb();
}

/* ---- STATS ---- */

static uint64_t meminfo(const char *text, const char *key) {
    const char *line = strstr(text, key);
    return line ? strtoull(line + strlen(key), NULL, 10) << 10 : 0;
}

void op_stats(uint32_t id, struct request *request) {
    char text[4096];
    struct statfs disk = {0};
    struct timespec up = {0};
    (void)request;
    slurp("/proc/meminfo", text, sizeof text);
    statfs("/", &disk);
    clock_gettime(CLOCK_BOOTTIME, &up);
    struct out out = link_fields(REPLY, FIN, id);
    put_raw(&out, 4, 0);
    put_uint(&out, 1, 8, meminfo(text, "MemTotal:"));
    put_uint(&out, 2, 8, meminfo(text, "MemAvailable:"));
    put_uint(&out, 3, 8, (uint64_t)disk.f_blocks * (uint64_t)disk.f_bsize);
    put_uint(&out, 4, 8, (uint64_t)(disk.f_blocks - disk.f_bfree) * (uint64_t)disk.f_bsize);
    put_uint(&out, 5, 4, (uint32_t)list_pids(pids, PIDS_MAX));
    put_uint(&out, 6, 8, (uint64_t)up.tv_sec * 1000000000 + (uint64_t)up.tv_nsec);
    put_uint(&out, 7, 8, meminfo(text, "\nCached:"));
    link_send(&out);
}
