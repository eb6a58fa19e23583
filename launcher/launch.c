// wardian-launch: puts one machine (a gVisor sentry, or QEMU) behind walls, then stays as its keeper.
//
// usage: wardian-launch OPTION=VALUE... -- ARGV...
//
// It joins the cgroups, makes namespaces, mounts the bounded disk where nobody else sees it, forks, and in the child
// drops every privilege and becomes `runsc boot`, or QEMU; "sentry" below is either. The parent is the keeper: it holds the host end of the link, hands
// it to whoever serves next (same uid only), and writes down how the sentry ended. If the keeper dies, the sentry dies.
//
//   root=DIR        an existing directory to mount on (inside our own mount namespace only)
//   uid-base=N      the sentry runs as uid and gid N + our pid: unique as long as we live
//   owner=UID       who may connect to the keeper
//   status=FD       append-only file: "error ..." before the start, "exit N" or "signal N" and the last words after
//   listen=FD       the keeper's listening SOCK_SEQPACKET
//   link=FD         the host end of the link
//   log=FD          read end of the pipe that is the sentry's stderr
//   exec=FD         the program: runsc, or QEMU
//   jail=DIR        all that the program sees of the host's files, read-only; without it, nothing but /proc
//   relay=FD:FD     packets of the first descriptor are carried over the byte stream of the second, and back; on SIGUSR1
//                   the guest is told the time
//   disk=FD:NUM     back the guest's disk with this ext4 image (loop device) and give it to the sentry as fd NUM
//   tmpdisk=MIB:NUM the same with a tmpfs of that size
//   fd=SRC:DST      descriptor of the sentry; numbers are part of a snapshot (sockets are restored by number)
//   cgroup=DIR      join it (repeat)
//   env=K=V         environment of the sentry (repeat)
//   create=1        ARGV is `runsc create`, which drops privileges itself: we stay root, are init of its pid namespace,
//                   and leave the disk mounted on root=DIR
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/loop.h>
#include <linux/securebits.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../guest/src/relay.h"

enum { FDS_MAX = 32, ENV_MAX = 16, FD_TABLE = 300, SYNC_FD = 5, LOOP_TRIES = 64, LAST_WORDS = 65536 };

static const char *root_dir, *jail_dir;
static struct relay relay = {.packets = -1, .stream = -1};
static long uid_base = -1, owner = -1;
static int status_fd = -1, listen_fd = -1, link_fd = -1, log_fd = -1, exec_fd = -1;
static int disk_fd = -1, disk_number = -1, fd_count, create_mode;
static long tmpdisk_mib;
static struct { int from, to; } fds[FDS_MAX];
static char *environment[ENV_MAX + 1];

static void die(const char *what)
{
    char line[256];
    int n = snprintf(line, sizeof line, "error %s: %s\n", what, strerror(errno));
    if (write(status_fd < 0 ? 2 : status_fd, line, (size_t)n) < 0) _exit(121);
    _exit(120);
}

static void need(int ok, const char *what)
{
    if (!ok) die(what);
}

static void join_cgroup(const char *directory)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/cgroup.procs", directory);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    need(fd >= 0 && write(fd, "0", 1) == 1, path);
    close(fd);
}

static void add_fd(int from, int to)
{
    errno = E2BIG;
    need(fd_count < FDS_MAX && to < FD_TABLE, "too many descriptors");
    fds[fd_count].from = from;
    fds[fd_count++].to = to;
}

static int parse(int argc, char **argv)
{
    int i, environments = 0;
    for (i = 1; i < argc && strcmp(argv[i], "--"); i++) {
        char *key = argv[i], *value = strchr(key, '=');
        errno = EINVAL;
        need(value != NULL, key);
        *value++ = 0;
        char *second = strchr(value, ':');
        if (!strcmp(key, "root")) root_dir = value;
        else if (!strcmp(key, "jail")) jail_dir = value;
        else if (!strcmp(key, "relay") && second) relay.packets = atoi(value), relay.stream = atoi(second + 1);
        else if (!strcmp(key, "uid-base")) uid_base = atol(value);
        else if (!strcmp(key, "owner")) owner = atol(value);
        else if (!strcmp(key, "status")) status_fd = atoi(value);
        else if (!strcmp(key, "listen")) listen_fd = atoi(value);
        else if (!strcmp(key, "link")) link_fd = atoi(value);
        else if (!strcmp(key, "log")) log_fd = atoi(value);
        else if (!strcmp(key, "exec")) exec_fd = atoi(value);
        else if (!strcmp(key, "create")) create_mode = atoi(value);
        else if (!strcmp(key, "cgroup")) join_cgroup(value);
        else if (!strcmp(key, "env") && environments < ENV_MAX) environment[environments++] = value;
        else if (!strcmp(key, "fd") && second) add_fd(atoi(value), atoi(second + 1));
        else if (!strcmp(key, "disk") && second) disk_fd = atoi(value), disk_number = atoi(second + 1);
        else if (!strcmp(key, "tmpdisk") && second) tmpdisk_mib = atol(value), disk_number = atoi(second + 1);
        else die(key);
    }
    errno = EINVAL;
    need(i + 1 < argc && root_dir && uid_base > 0 && owner >= 0 && status_fd > 2 && listen_fd > 2 && link_fd > 2
             && log_fd > 2 && exec_fd > 2, "arguments");
    return i + 1;
}

// A loop device on the image that vanishes by itself with its last user.
static void loop_device(char *path, size_t size)
{
    int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
    need(control >= 0, "/dev/loop-control");
    for (int i = 0; i < LOOP_TRIES; i++) {
        int number = ioctl(control, LOOP_CTL_GET_FREE);
        need(number >= 0, "no free loop device");
        snprintf(path, size, "/dev/loop%d", number);
        int loop = open(path, O_RDWR | O_CLOEXEC); // stays open until we exec or exit: autoclear waits for us
        need(loop >= 0, path);
        struct loop_config config = {.fd = (unsigned)disk_fd, .block_size = 4096,
                                     .info.lo_flags = LO_FLAGS_AUTOCLEAR | LO_FLAGS_DIRECT_IO};
        if (!ioctl(loop, LOOP_CONFIGURE, &config)) {
            close(control);
            return;
        }
        close(loop); // another launcher was quicker
        need(errno == EBUSY, "LOOP_CONFIGURE");
    }
    die("no free loop device");
}

// One unnamed file on a file system of bounded size. The file system lives exactly as long as the descriptor.
static void make_disk(void)
{
    char path[64], options[64];
    if (disk_fd >= 0) {
        loop_device(path, sizeof path);
        // Not noexec: what the guest runs or loads from its disk is mapped straight from this file.
        need(!mount(path, root_dir, "ext4", MS_NOSUID | MS_NODEV | MS_NOATIME, "discard"), "mount disk");
    } else {
        snprintf(options, sizeof options, "size=%ldm,nr_inodes=8", tmpdisk_mib);
        need(!mount("disk", root_dir, "tmpfs", MS_NOSUID | MS_NODEV, options), "mount tmpfs disk");
    }
    if (create_mode) return; // runsc opens its file there itself
    int file = open(root_dir, O_RDWR | O_TMPFILE | O_CLOEXEC, 0600);
    need(file >= 0, "disk file");
    need(!umount2(root_dir, MNT_DETACH), "detach disk");
    add_fd(file, disk_number);
}

static void make_root(void)
{
    char proc[4096];
    unsigned long bars = MS_NOSUID | MS_NODEV | (jail_dir ? 0 : MS_NOEXEC); // a jail holds what QEMU is made of
    snprintf(proc, sizeof proc, "%s/proc", root_dir);
    if (jail_dir) need(!mount(jail_dir, root_dir, NULL, MS_BIND, NULL), "jail");
    else need(!mount("root", root_dir, "tmpfs", bars, "size=64k,nr_inodes=8,mode=755") && !mkdir(proc, 0555), "root");
    need(!mount("proc", proc, "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_RDONLY, 0), "proc");
    need(!mount(0, root_dir, 0, MS_BIND | MS_REMOUNT | MS_RDONLY | bars, 0), "read-only");
    need(!chdir(root_dir) && !syscall(SYS_pivot_root, ".", ".") && !umount2(".", MNT_DETACH) && !chdir("/"), "pivot");
}

static void set_limits(void)
{
    struct rlimit none = {0, 0}, processes;
    need(!setrlimit(RLIMIT_CORE, &none) && !setrlimit(RLIMIT_MSGQUEUE, &none), "rlimit");
    // The cgroup bounds processes; a clone refused for this limit would panic the sentry.
    need(!getrlimit(RLIMIT_NPROC, &processes), "rlimit");
    processes.rlim_cur = processes.rlim_max;
    need(!setrlimit(RLIMIT_NPROC, &processes), "rlimit");
}

static void drop_privileges(uid_t uid)
{
    int bits = SECBIT_NOROOT | SECBIT_NOROOT_LOCKED | SECBIT_NO_SETUID_FIXUP_LOCKED | SECBIT_KEEP_CAPS_LOCKED
               | SECBIT_NO_CAP_AMBIENT_RAISE | SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED;
    set_limits();
    need(!prctl(PR_SET_SECUREBITS, bits, 0, 0, 0), "securebits");
    for (int cap = 0; prctl(PR_CAPBSET_READ, cap, 0, 0, 0) >= 0; cap++)
        need(!prctl(PR_CAPBSET_DROP, cap, 0, 0, 0), "bounding set");
    need(!setgroups(0, NULL) && !setresgid(uid, uid, uid) && !setresuid(uid, uid, uid), "setresuid");
    need(!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs");
}

// The sentry moves its stdio above 255. Growing the table of a multi-threaded process waits for an RCU grace period,
// so it is grown here, while there is one thread; exec keeps the size.
static void place_fds(void)
{
    unsigned char wanted[FD_TABLE] = {1, 1, 1};
    exec_fd = fcntl(exec_fd, F_DUPFD_CLOEXEC, FD_TABLE);
    status_fd = fcntl(status_fd, F_DUPFD_CLOEXEC, FD_TABLE); // for last complaints: its old number may be taken
    need(exec_fd >= 0 && status_fd >= 0, "dup");
    for (int i = 0; i < fd_count; i++) {
        fds[i].from = fcntl(fds[i].from, F_DUPFD_CLOEXEC, FD_TABLE);
        need(fds[i].from >= 0, "dup");
    }
    for (int i = 0; i < fd_count; i++) {
        need(dup2(fds[i].from, fds[i].to) >= 0, "dup2");
        wanted[fds[i].to] = 1;
    }
    for (int fd = 3; fd < FD_TABLE; fd++)
        if (!wanted[fd]) close(fd);
    need(!syscall(SYS_close_range, FD_TABLE, ~0U, 4 /* CLOSE_RANGE_CLOEXEC */), "close_range");
}

static void keep_only(int **kept, int count)
{
    for (int i = 0; i < count; i++) {
        *kept[i] = fcntl(*kept[i], F_DUPFD_CLOEXEC, FD_TABLE);
        need(*kept[i] >= 0, "dup");
    }
    for (int i = 0; i < count; i++) *kept[i] = dup3(*kept[i], 3 + i, O_CLOEXEC);
    need(!syscall(SYS_close_range, 3 + count, ~0U, 0), "close_range");
}

static void die_with(int keeper_pidfd)
{
    struct pollfd keeper = {keeper_pidfd, POLLIN, 0};
    need(!prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0), "pdeathsig");
    if (poll(&keeper, 1, 0)) _exit(0); // it was already gone
}

// `runsc create` leaves its sandbox to us, and its pid namespace needs an init.
static void create_and_wait(char **argv)
{
    int status = 0, last = 0;
    need(!mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL), "proc");
    pid_t create = fork();
    need(create >= 0, "fork create");
    if (!create) {
        close(SYNC_FD);
        syscall(SYS_execveat, exec_fd, "", argv, environment, AT_EMPTY_PATH);
        die("exec runsc create");
    }
    while (waitpid(create, &status, 0) < 0 && errno == EINTR) {}
    if (!WIFEXITED(status) || WEXITSTATUS(status)) _exit(119);
    need(write(SYNC_FD, "c", 1) == 1, "sync");
    need(!close_range(0, ~0U, 0), "close_range");
    while (wait(&status) > 0 || errno == EINTR)
        if (!WIFSIGNALED(last)) last = status; // the gofer ends after the sentry, and peacefully
    _exit(WIFSIGNALED(last) ? 128 + WTERMSIG(last) : WEXITSTATUS(last)); // an init cannot die of another's signal
}

static void become_sentry(char **argv, uid_t uid, int keeper_pidfd)
{
    if (create_mode) {
        die_with(keeper_pidfd);
        place_fds();
        create_and_wait(argv);
    }
    make_root();
    drop_privileges(uid);
    die_with(keeper_pidfd); // after the change of user, which clears it
    place_fds();
    syscall(SYS_execveat, exec_fd, "", argv, environment, AT_EMPTY_PATH);
    die(jail_dir ? "exec qemu" : "exec runsc");
}

// One greeting for each caller of the owner: our pid, the sentry's, and the link and both pidfds as descriptors.
static void greet(pid_t sentry, int keeper_pidfd, int sentry_pidfd)
{
    struct ucred peer;
    socklen_t size = sizeof peer;
    int caller = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (caller < 0) return;
    if (!getsockopt(caller, SOL_SOCKET, SO_PEERCRED, &peer, &size) && (long)peer.uid == owner) {
        char text[64];
        int passed[3] = {link_fd, keeper_pidfd, sentry_pidfd};
        union { struct cmsghdr header; char space[CMSG_SPACE(sizeof passed)]; } control = {0};
        struct iovec part = {text, (size_t)snprintf(text, sizeof text, "1 %d %d", getpid(), sentry)};
        struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control,
                                 .msg_controllen = sizeof control};
        control.header = (struct cmsghdr){CMSG_LEN(sizeof passed), SOL_SOCKET, SCM_RIGHTS};
        memcpy(CMSG_DATA(&control.header), passed, sizeof passed);
        sendmsg(caller, &message, MSG_NOSIGNAL);
    }
    close(caller);
}

static void write_epitaph(pid_t sentry)
{
    static char words[LAST_WORDS];
    int status = 0;
    while (waitpid(sentry, &status, 0) < 0 && errno == EINTR) {}
    dprintf(status_fd, WIFSIGNALED(status) ? "signal %d\n" : "exit %d\n",
            WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
    ssize_t n = read(log_fd, words, sizeof words);
    if (n > 0 && write(status_fd, words, (size_t)n) < 0) _exit(1);
    _exit(0);
}

// What was said before a machine went on says nothing of its end, and leaves no room for what does: QEMU complains whenever
// a clone's guest reports free memory, which it cannot let go of.
static void forget_chatter(void)
{
    static char words[LAST_WORDS];
    if (read(log_fd, words, sizeof words) < 0) return; // there was none
}

static int wait_for_questions(void)
{
    sigset_t questions;
    if (relay.stream < 0) return -1;
    sigemptyset(&questions);
    sigaddset(&questions, SIGUSR1);
    sigprocmask(SIG_BLOCK, &questions, NULL); // only here: the machine was forked before
    int fd = signalfd(-1, &questions, SFD_CLOEXEC | SFD_NONBLOCK);
    need(fd >= 0, "signalfd");
    return fd;
}

// The stream is the guest's: what makes no sense ends the machine, and is written down, as far as it is text.
static void condemn(pid_t sentry)
{
    char words[128] = "";
    size_t size = relay.in.end - relay.in.start;
    if (size > sizeof words - 1) size = sizeof words - 1;
    memcpy(words, relay.in.bytes + relay.in.start, size);
    for (size_t i = 0; i < size; i++)
        if (words[i] < ' ' || words[i] > '~') words[i] = words[i] == '\n' ? ' ' : '?';
    relay.packets = relay.stream = -1;
    if (!size) return; // it just ended, and so does the machine
    dprintf(status_fd, "error the guest's stream broke: %s\n", words);
    kill(sentry, SIGKILL);
}

static void keep(pid_t sentry, int keeper_pidfd, int sentry_pidfd, int clock_fd)
{
    struct pollfd waits[5] = {{listen_fd, POLLIN, 0}, {sentry_pidfd, POLLIN, 0}, {clock_fd, POLLIN, 0}};
    struct signalfd_siginfo asked;
    if (relay.stream >= 0) relay_pad(&relay);
    for (;;) {
        relay_waits(&relay, waits + 3);
        if (poll(waits, 5, -1) < 0) continue;
        if (waits[1].revents) write_epitaph(sentry);
        if (waits[0].revents) greet(sentry, keeper_pidfd, sentry_pidfd);
        if (waits[2].revents && read(clock_fd, &asked, sizeof asked) > 0) {
            relay_tell_time(&relay);
            forget_chatter();
        }
        if (relay.stream >= 0 && (waits[2].revents || waits[3].revents || waits[4].revents) && !relay_step(&relay)) condemn(sentry);
    }
}

int main(int argc, char **argv)
{
    char **command = argv + parse(argc, argv);
    uid_t uid = (uid_t)(uid_base + getpid());
    setsid();
    umask(077);
    need(!unshare(CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWNET | CLONE_NEWPID), "unshare");
    need(!mount(NULL, "/", NULL, MS_SLAVE | MS_REC, NULL), "slave mounts");
    if (disk_fd >= 0 || tmpdisk_mib > 0) make_disk();
    int keeper_pidfd = (int)syscall(SYS_pidfd_open, getpid(), 0);
    need(keeper_pidfd >= 0, "pidfd_open");
    pid_t sentry = fork();
    need(sentry >= 0, "fork");
    if (!sentry) become_sentry(command, uid, keeper_pidfd);

    int sentry_pidfd = (int)syscall(SYS_pidfd_open, sentry, 0);
    need(sentry_pidfd >= 0, "pidfd_open");
    drop_privileges(uid);
    need(!prctl(PR_SET_DUMPABLE, 0, 0, 0, 0), "dumpable");
    keep_only((int *[]){&status_fd, &listen_fd, &link_fd, &log_fd, &keeper_pidfd, &sentry_pidfd, &relay.packets, &relay.stream},
              relay.stream >= 0 ? 8 : 6);
    keep(sentry, keeper_pidfd, sentry_pidfd, wait_for_questions());
}
