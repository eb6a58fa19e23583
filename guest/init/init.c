/* wardian-init: the first program of a machine with a Linux kernel, from our initramfs. It loads the modules, puts the
   writable disk over the read-only root, opens the port that is the link, and becomes the guest agent, which is kept in a
   sealed memory file: an image needs nothing of ours, and a snapshot carries the very agent that it was taken with.

   The kernel's command line says wardian_processes=N; with wardian_echo we are the agent of a probe ourselves. What goes
   wrong is told on the port, in words: the keeper at the other end takes that for the end, and writes it down. With
   wardian_link=vsock the link is not a port: the agent listens on a vsock, and again after every capture, which cuts it. */

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/vm_sockets.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sendfile.h>
#include <unistd.h>

enum { WAIT_MS = 20000, LINK_PORT = 1024 };
static const char ROOT_DISK[] = "/dev/vda", OWN_DISK[] = "/dev/vdb", PORT[] = "/dev/vport0p1";
static int port = -1, upper = -1;

static void need(int ok, const char *what)
{
    if (ok) return;
    char line[256];
    int size = snprintf(line, sizeof line, "init: %s: %s\n", what, strerror(errno));
    if (write(port < 0 ? 2 : port, line, (size_t)size) < 0) _exit(121);
    usleep(200000); /* our end is the machine's: let it be read first */
    _exit(120);
}

static void load_module(const char *name)
{
    char path[300];
    snprintf(path, sizeof path, "/modules/%s", name);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    need(fd >= 0 && (!syscall(SYS_finit_module, fd, "", 0) || errno == EEXIST), path);
    close(fd);
    unlink(path); /* the initramfs is memory */
}

/* In the order of their names. */
static void load_modules(void)
{
    struct dirent **names;
    int count = scandir("/modules", &names, NULL, alphasort);
    need(count >= 0, "/modules");
    for (int i = 0; i < count; i++)
        if (names[i]->d_name[0] != '.') load_module(names[i]->d_name);
}

static void wait_for(const char *path)
{
    for (int waited = 0; access(path, F_OK); waited++) {
        need(waited < WAIT_MS, path);
        usleep(1000);
    }
}

/* Until the host's end is there, everything read is an end of file. */
static void open_port(void)
{
    wait_for(PORT);
    int fd = open(PORT, O_RDWR | O_NONBLOCK);
    need(fd >= 0, PORT);
    struct pollfd there = {fd, POLLOUT, 0};
    for (int waited = 0; poll(&there, 1, 1000) < 1 || there.revents & POLLHUP; waited++) {
        need(waited < WAIT_MS, "nobody is at the other end of the port");
        usleep(1000);
    }
    port = fd;
}

static int listening(void)
{
    struct sockaddr_vm here = {.svm_family = AF_VSOCK, .svm_port = LINK_PORT, .svm_cid = VMADDR_CID_ANY};
    int fd = socket(AF_VSOCK, SOCK_STREAM, 0);
    need(fd >= 0 && !bind(fd, (struct sockaddr *)&here, sizeof here) && !listen(fd, 1), "listen on the vsock");
    return fd;
}

static void mount_root(void)
{
    wait_for(ROOT_DISK);
    wait_for(OWN_DISK);
    need(!mount(ROOT_DISK, "/lower", "erofs", MS_RDONLY | MS_NODEV, NULL), "the root image");
    need(!mount(OWN_DISK, "/disk", "ext4", MS_NOATIME, "discard"), "the disk");
    need(!mkdir("/disk/upper", 0755) && !mkdir("/disk/work", 0700), "the disk is not empty");
    need((upper = open("/disk/upper", O_PATH | O_DIRECTORY)) >= 0, "/disk/upper"); /* PACK looks there */
    need(!mount("overlay", "/new", "overlay", 0, "lowerdir=/lower,upperdir=/disk/upper,workdir=/disk/work,xino=off"), "overlay");
    need(!umount2("/lower", MNT_DETACH) && !umount2("/disk", MNT_DETACH), "detach");
}

static int sealed_agent(void)
{
    int file = open("/agent", O_RDONLY | O_CLOEXEC), memory = memfd_create("wardian-guest", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    struct stat about;
    need(file >= 0 && memory >= 0 && !fstat(file, &about), "the agent");
    for (off_t done = 0; done < about.st_size;) {
        ssize_t put = sendfile(memory, file, &done, (size_t)(about.st_size - done));
        need(put > 0, "copy the agent");
    }
    close(file);
    unlink("/agent");
    unlink("/init");
    need(!fcntl(memory, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE), "seal the agent");
    return memory;
}

static void enter_root(void)
{
    umount2("/sys", MNT_DETACH);
    umount2("/proc", MNT_DETACH);
    mkdir("/new/dev", 0755);
    need(!mount("/dev", "/new/dev", NULL, MS_MOVE, NULL), "move /dev");
    need(!chdir("/new") && !mount(".", "/", NULL, MS_MOVE, NULL) && !chroot(".") && !chdir("/"), "enter the root");
    mkdir("/tmp", 01777);
    need(!chmod("/tmp", 01777), "/tmp");
}

static char settings[4096]; /* the kernel's command line */

static void read_command_line(void)
{
    int fd = open("/proc/cmdline", O_RDONLY | O_CLOEXEC);
    ssize_t got = fd < 0 ? -1 : read(fd, settings, sizeof settings - 1);
    need(got > 0, "/proc/cmdline");
    close(fd);
}

/* Whatever comes goes back as it came, so packets do. */
static void echo(void)
{
    static char bytes[65536];
    struct pollfd there = {port, POLLIN, 0};
    for (;;) {
        poll(&there, 1, -1);
        ssize_t got = read(port, bytes, sizeof bytes);
        if (got > 0 && write(port, bytes, (size_t)got) != got) _exit(1);
        if (got == 0) _exit(0);
    }
}

static void processes_max(char *out, size_t size)
{
    const char *at = strstr(settings, "wardian_processes=");
    snprintf(out, size, "%d", at ? atoi(at + strlen("wardian_processes=")) : 0);
}

int main(void)
{
    char processes[16], link[16], changes[16];
    char *argv[] = {"wardian-guest", "--processes-max", processes, "--stream", link, "--upper", changes, NULL};
    char *environment[] = {"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", NULL};
    need(!mount("dev", "/dev", "devtmpfs", MS_NOSUID, "mode=0755") || errno == EBUSY, "/dev");
    need(!mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL), "/proc");
    int fd = 0;
    while (fd < 3) need((fd = open("/dev/null", O_RDWR)) >= 0, "/dev/null"); /* 0, 1 and 2, where the kernel gave us none */
    close(fd);
    read_command_line();
    processes_max(processes, sizeof processes);
    load_modules();
    int listener = strstr(settings, "wardian_link=vsock") ? listening() : -1;
    if (listener < 0) open_port();
    else argv[3] = "--listen";
    mount_root();
    if (strstr(settings, "wardian_echo")) {
        if (listener >= 0) need((port = accept(listener, NULL, NULL)) >= 0, "accept");
        echo();
    }
    int agent = sealed_agent();
    enter_root();
    snprintf(link, sizeof link, "%d", listener < 0 ? port : listener);
    snprintf(changes, sizeof changes, "%d", upper);
    syscall(SYS_execveat, agent, "", argv, environment, AT_EMPTY_PATH);
    need(0, "the agent cannot be run");
}
