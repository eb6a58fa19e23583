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

enum { GUARD_CALM_MS = 250, GUARD_BUSY_MS = 50, PROCESSES_MAX = 8192, CROWD = 32, ROUNDS = 20, RELIEF_MS = 1000 };

/* One process, as /proc tells. Static: this must work when there is no memory left. */
static struct process {
    pid_t pid, session;
    uint64_t resident; /* bytes */
    uint32_t threads;
} processes[PROCESSES_MAX];
static size_t process_total;
static uint64_t guard_last;
static uint32_t guard_seen, guard_counted; /* tasks at the last look; up to how many the processes have been counted */

static ssize_t slurp(const char *path, char *buffer, size_t capacity) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t got = fd < 0 ? -1 : read(fd, buffer, capacity - 1);
    if (fd >= 0) close(fd);
    buffer[got > 0 ? got : 0] = 0;
    return got;
}

/* Every pid but our own and 1; the numbers only when `list` is NULL. */
static size_t list_processes(struct process *list, size_t max) {
    static _Alignas(8) char bytes[16 << 10];
    size_t count = 0;
    int fd = open("/proc", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return 0;
    for (ssize_t got; (got = getdents64(fd, bytes, sizeof bytes)) > 0;)
        for (ssize_t at = 0; at < got;) {
            const struct dirent64 *entry = (void *)(bytes + at);
            int pid = atoi(entry->d_name);
            at += entry->d_reclen;
            if (pid <= 1 || pid == getpid()) continue;
            if (list && count < max) list[count] = (struct process){.pid = pid};
            if (!list || count < max) count++;
        }
    close(fd);
    return count;
}

/* What /proc/<pid>/stat says; the parent is returned, 0 when the process is gone. */
static pid_t describe(struct process *process) {
    char path[64], text[1024];
    int parent = 0, session = 0;
    long threads = 0, pages = 0;
    snprintf(path, sizeof path, "/proc/%d/stat", process->pid);
    const char *end = slurp(path, text, sizeof text) > 0 ? strrchr(text, ')') : NULL; /* a name may hold anything */
    if (!end || sscanf(end + 1, " %*c %d %*d %d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %ld %*d %*u %*u %ld", &parent,
                       &session, &threads, &pages) != 4)
        return 0;
    process->session = session;
    process->threads = (uint32_t)threads;
    process->resident = (uint64_t)pages * (uint64_t)sysconf(_SC_PAGESIZE);
    return parent;
}

/* Natively there are others' processes too: ours descend from us. */
static bool ours(pid_t parent) {
    for (int i = 0; settings.native && parent != getpid(); i++) {
        struct process process = {.pid = parent};
        if (parent <= 1 || i == 64) return false;
        parent = describe(&process);
    }
    return parent > 0;
}

static unsigned task_count(void) { /* threads included */
    struct sysinfo info;
    return sysinfo(&info) ? 0 : info.procs;
}

/* Hundreds of runnable processes leave us no processor to look at them with, so everything is stopped meanwhile.
   A process that is just being born escapes one such signal, and may have children: hence the repetitions. */
static bool holding;

static void hold_again(void) {
    if (holding) kill(-1, SIGSTOP);
}

void hold_everything(bool hold) {
    if (settings.native) return;
    holding = hold;
    if (!hold) kill(-1, SIGCONT);
    unsigned before, after = 0;
    for (int round = 0; hold && round < ROUNDS; round++) {
        before = after;
        hold_again();
        after = task_count();
        if (after == before) break;
    }
}

/* Fill `processes`, sorted by session. */
static int by_session(const void *a, const void *b) {
    return ((const struct process *)a)->session - ((const struct process *)b)->session;
}

static void scan(void) {
    size_t count = list_processes(processes, PROCESSES_MAX);
    process_total = 0;
    for (size_t i = 0; i < count; i++) {
        struct process process = processes[i];
        if (i % 16 == 0) hold_again();
        if (ours(describe(&process)) && process.session > 0) processes[process_total++] = process;
    }
    qsort(processes, process_total, sizeof *processes, by_session);
}

struct session {
    pid_t id, member; /* the leader may be gone: one that is there */
    size_t count;
    uint64_t resident, biggest; /* in all, and of the biggest process */
    uint32_t threads;
};

/* The session that has the most of what `amount` says. */
static struct session worst_session(uint64_t (*amount)(const struct session *)) {
    struct session worst = {0}, now = {0};
    for (size_t i = 0; i < process_total; i++) {
        const struct process *process = &processes[i];
        if (process->session != now.id) now = (struct session){.id = process->session, .member = process->pid};
        now.count++;
        now.threads += process->threads;
        now.resident += process->resident;
        if (process->resident > now.biggest) now.biggest = process->resident;
        if (amount(&now) > amount(&worst)) worst = now;
    }
    return worst;
}

static uint64_t threads_of(const struct session *session) { return session->threads; }
static uint64_t resident_of(const struct session *session) { return session->resident; }

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

/* Kill every process of the session, again and again until no new one has come. */
static uint32_t kill_session(pid_t session) {
    uint32_t killed = 0;
    for (int round = 0; round < ROUNDS; round++) {
        uint32_t found = 0;
        kill(-session, SIGKILL);
        scan();
        for (size_t i = 0; i < process_total; i++)
            if (processes[i].session == session && kill(processes[i].pid, SIGKILL) == 0)
                found++;
        exec_reap();
        killed = found > killed ? found : killed;
        if (!found) break;
    }
    return killed;
}

/* The biggest process, or, when a crowd of small ones has the memory, the session they belong to. */
void relieve(void) {
    static pid_t last;
    static uint64_t last_when;
    char name[64];
    if (last && now_ms() - last_when < RELIEF_MS && kill(last, 0) == 0) return; /* its memory is on its way back */
    bool crowded = task_count() > CROWD;
    if (crowded) hold_everything(true);
    scan();
    const struct process *victim = NULL;
    for (size_t i = 0; i < process_total; i++)
        if (!victim || processes[i].resident > victim->resident) victim = &processes[i];
    struct session session = worst_session(resident_of);
    if (session.count > CROWD && session.biggest < session.resident / 4) {
        process_name(session.member, name, sizeof name);
        uint32_t killed = kill_session(session.id);
        notice("oom_kill", session.id, name, session.resident, killed > session.count ? killed : (uint32_t)session.count);
    } else if (victim) {
        struct process doomed = *victim;
        process_name(doomed.pid, name, sizeof name);
        if (kill(doomed.pid, SIGKILL) == 0) notice("oom_kill", doomed.pid, name, doomed.resident, 1);
        last = doomed.pid;
        last_when = now_ms();
    }
    if (crowded) hold_everything(false);
}

/* ---- the fork guard ---- */

/* More tasks than the limit. Threads are tasks too, so only counting tells; kill when it is processes, or far too many. */
static void stop_bomb(uint32_t tasks) {
    char name[64];
    hold_everything(true);
    scan();
    struct session session = worst_session(threads_of);
    process_name(session.member, name, sizeof name);
    if (process_total <= settings.processes_max && tasks <= 4 * settings.processes_max) {
        guard_counted = settings.native ? 0 : tasks + tasks / 8; /* threads: look again when there are notably more */
    } else if (session.count < process_total / 4 && !settings.native) { /* they flee into sessions of their own */
        for (int round = 0; round < ROUNDS && (round == 0 || list_processes(NULL, 0)); round++) {
            kill(-1, SIGKILL);
            exec_reap();
        }
        notice("fork_guard", session.id, "every process", 0, (uint32_t)process_total);
    } else if (session.id) {
        uint32_t killed = kill_session(session.id);
        notice("fork_guard", session.id, name, session.resident, killed > session.count ? killed : (uint32_t)session.count);
    }
    hold_everything(false);
}

int guard_timeout(void) {
    if (!settings.processes_max || !processes_exist()) return -1;
    bool busy = guard_seen > settings.processes_max / 4;
    uint64_t passed = now_ms() - guard_last, interval = busy ? GUARD_BUSY_MS : GUARD_CALM_MS;
    return passed >= interval ? 0 : (int)(interval - passed);
}

void guard_start(void) { guard_last = now_ms(); }

void guard_check(void) {
    if (guard_timeout() != 0) return;
    guard_seen = task_count();
    if (guard_seen <= settings.processes_max) guard_counted = 0;
    else if (guard_seen > guard_counted) stop_bomb(guard_seen);
    if (!settings.native && guard_seen > settings.processes_max && guard_counted < guard_seen) guard_counted = task_count(); /* the dying count too */
    guard_last = now_ms();
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
    put_uint(&out, 5, 4, (uint32_t)list_processes(NULL, 0));
    put_uint(&out, 6, 8, (uint64_t)up.tv_sec * 1000000000 + (uint64_t)up.tv_nsec);
    put_uint(&out, 7, 8, meminfo(text, "\nCached:"));
    link_send(&out);
}
