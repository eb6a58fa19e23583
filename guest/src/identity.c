/* Becoming pid 1, and becoming somebody else: ATTACH and HELLO. */
#include <errno.h>
#include <fcntl.h>
#include <linux/random.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "agent.h"

static const char BOOT_ID[] = "/proc/sys/kernel/random/boot_id";
static const char OWN_BOOT_ID[] = "/run/.wardian-boot-id";

/* ---- as pid 1 ---- */

static void mount_missing(const char *path, const char *probe, const char *type, const char *options) {
    if (access(probe, F_OK) == 0) return;
    mkdir(path, 0755);
    if (mount(type, path, type, MS_NOSUID, options)) say("cannot mount %s: %s", path, strerror(errno));
}

void machine_setup(void) {
    mount_missing("/proc", "/proc/self", "proc", NULL);
    mount_missing("/sys", "/sys/devices", "sysfs", NULL);
    mount_missing("/dev", "/dev/null", "devtmpfs", "mode=0755");
    mount_missing("/dev/pts", "/dev/pts/ptmx", "devpts", "gid=5,mode=620,ptmxmode=666");
    mount_missing("/dev/shm", "/dev/shm", "tmpfs", "mode=1777");
    mount_missing("/tmp", "/tmp", "tmpfs", "mode=1777");
    mount_missing("/run", "/run", "tmpfs", "mode=0755");
    if (access("/dev/fd", F_OK) && symlink("/proc/self/fd", "/dev/fd")) say("no /dev/fd: %s", strerror(errno));
    int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
    if (fd >= 0 && write(fd, "100", 3) < 0) say("oom_score_adj: %s", strerror(errno)); /* for our children: pid 1 itself is never chosen */
    if (fd >= 0) close(fd);
    if (settings.processes_max) { /* theirs too; it does not bind root. Twice: at the limit itself the fork guard acts, at once and for good */
        struct rlimit limit = {2 * settings.processes_max, 2 * settings.processes_max};
        if (setrlimit(RLIMIT_NPROC, &limit)) say("RLIMIT_NPROC: %s", strerror(errno));
    }
}

/* ---- identity ---- */

/* Replace a small file's contents in place, making its directory. errno. */
static int write_file(const char *path, const void *bytes, size_t size, mode_t mode) {
    static const struct user root = {.uid = 0};
    const struct user here = {.uid = geteuid(), .gid = getegid()};
    int error = make_parents(path, settings.native ? &here : &root);
    if (error) return error;
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_NONBLOCK | O_NOCTTY | O_CLOEXEC, mode);
    if (fd < 0) return errno;
    ssize_t put = write(fd, bytes, size);
    error = put < 0 ? errno : (size_t)put == size ? 0 : ENOSPC;
    if (!error && fchmod(fd, mode)) error = errno;
    close(fd);
    return error;
}

static int write_line(const char *path, const char *text) {
    char line[256];
    int size = snprintf(line, sizeof line, "%s\n", text);
    return size < (int)sizeof line ? write_file(rooted(path), line, (size_t)size, 0444) : ENAMETOOLONG;
}

static int set_hostname(const char *name) {
    if (!settings.native && sethostname(name, strlen(name))) return errno;
    int error = write_line("/etc/hostname", name);
    return error ? error : chmod(rooted("/etc/hostname"), 0644) ? errno : 0;
}

static bool file_says(const char *path, const char *text) {
    char line[128] = "";
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t got = fd < 0 ? -1 : read(fd, line, sizeof line - 1);
    if (fd >= 0) close(fd);
    if (got <= 0) return false;
    line[strcspn(line, "\n")] = 0;
    return strcmp(line, text) == 0;
}

/* The kernel's own boot id is the template's; a file bound over it says this machine's. */
static int set_boot_id(const char *uuid) {
    int error = write_line(OWN_BOOT_ID, uuid);
    if (error || settings.native || file_says(BOOT_ID, uuid)) return error;
    if (mount(OWN_BOOT_ID, BOOT_ID, NULL, MS_BIND, NULL)) return errno;
    return file_says(BOOT_ID, uuid) ? 0 : EIO;
}

/* Where the kernel is the machine's own, what it drew before must not come out of a clone as well: so it draws afresh. */
static int stir(const struct field *entropy) {
    struct {
        struct rand_pool_info info;
        uint8_t bytes[32];
    } pool = {.info = {.entropy_count = 8 * sizeof pool.bytes, .buf_size = sizeof pool.bytes}};
    int fd = open("/dev/urandom", O_WRONLY | O_CLOEXEC);
    if (fd < 0) return errno;
    int error = write(fd, entropy->value, entropy->size) < 0 ? errno : 0;
    memcpy(pool.bytes, entropy->value, entropy->size < sizeof pool.bytes ? entropy->size : sizeof pool.bytes);
    if (settings.stream >= 0 && (ioctl(fd, RNDADDENTROPY, &pool) || ioctl(fd, RNDRESEEDCRNG))) error = errno;
    close(fd);
    return error;
}

/* One identity file: path NUL mode-octal NUL content. */
static int put_file(const struct field *file) {
    const char *path = (const char *)file->value, *end = path + file->size;
    const char *mode = memchr(path, 0, file->size);
    const char *content = mode ? memchr(mode + 1, 0, (size_t)(end - mode - 1)) : NULL;
    char *stop;
    if (!content || path[0] != '/' || strlen(path) >= PATH_MAX / 2) return EINVAL;
    unsigned long bits = strtoul(mode + 1, &stop, 8);
    if (*stop || stop == mode + 1 || bits > 07777) return EINVAL;
    return write_file(rooted(path), content + 1, (size_t)(end - content - 1), (mode_t)bits);
}

/* Apply whatever identity the request holds; false with what went wrong in `problem`. */
static bool become(struct request *request, char *problem, size_t capacity) {
    enum { FILES_MAX = 64 };
    struct field files[FILES_MAX];
    size_t count = request_all(request, 8, files, FILES_MAX);
    const char *what = "files";
    int error = count > FILES_MAX ? E2BIG : 0;
    for (size_t i = 0; !error && i < count; i++) error = put_file(&files[i]);
    if (!error && request->count[5]) {
        what = "entropy";
        error = stir(&request->last[5]);
    }
    uint64_t realtime = request_uint(request, 6, 8, 0);
    if (realtime && !settings.native) { /* best effort: some machines have the host's clock */
        struct timespec time = {(time_t)(realtime / 1000000000), (long)(realtime % 1000000000)};
        clock_settime(CLOCK_REALTIME, &time);
    }
    const char *hostname = request_text(request, 3, NULL), *machine = request_text(request, 4, NULL), *boot = request_text(request, 7, NULL);
    if (!error && request->bad) {
        what = "fields";
        error = EINVAL;
    }
    if (!error && hostname) {
        what = "hostname";
        error = set_hostname(hostname);
    }
    if (!error && machine) {
        what = "machine-id";
        error = write_line("/etc/machine-id", machine);
    }
    if (!error && boot) {
        what = "boot_id";
        error = set_boot_id(boot);
    }
    if (error) snprintf(problem, capacity, "%s: %s", what, strerror(error));
    return !error;
}

/* ---- HELLO ---- */

static uint8_t hello[PAYLOAD_MAX];
static size_t hello_size;

static void hello_process(const struct out *process) {
    if (hello_size + process->size + 5 > sizeof hello) {
        link_put(HELLO, MORE, 0, hello, hello_size);
        hello_size = 0;
    }
    struct out out = {.bytes = hello, .size = hello_size, .capacity = sizeof hello};
    put_bytes(&out, 4, process->bytes, process->size);
    hello_size = out.size;
}

void attach(struct request *request) {
    char problem[256];
    uint64_t version = request_uint(request, 1, 2, 0), epoch = request_uint(request, 2, 8, 0);
    quiesce_end();
    link_drop();
    link_rearm();
    bool good = become(request, problem, sizeof problem);
    if (version != PROTOCOL_VERSION) {
        good = false;
        snprintf(problem, sizeof problem, "protocol version %u is not spoken here", (unsigned)version);
    }
    struct out out = {.bytes = hello, .capacity = sizeof hello};
    put_uint(&out, 1, 2, PROTOCOL_VERSION);
    put_uint(&out, 2, 8, epoch);
    put_text(&out, 3, AGENT_BUILD);
    if (!good) put_text(&out, 9, problem);
    hello_size = out.size;
    exec_list(hello_process);
    link_put(HELLO, 0, 0, hello, hello_size);
    exec_attached();
}
