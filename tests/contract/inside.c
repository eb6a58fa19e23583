// What the contract suite runs inside machines. `inside keep` sets up one of everything that must survive a capture,
// says "ready", and for each line on stdin checks all of it and re-arms it for the next generation.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <pty.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int pipe_fds[2], unix_pair[2], unix_listener, tcp_listener, tcp_client, tcp_server, pty_host, pty_guest;
static int event, poller, offset_file, deleted_file;
static char *shared_file, *shared_anonymous;
static pid_t child;
static volatile long ticks;

static void must(int ok, const char *what)
{
    if (ok) return;
    printf("bad %s: %s\n", what, strerror(errno));
    fflush(stdout);
    _exit(1);
}

static void *tick(void *unused)
{
    for (;;) ticks++, usleep(1000);
    return unused;
}

static void expect(int fd, const char *text, const char *what)
{
    char got[64] = {0};
    ssize_t n = read(fd, got, strlen(text));
    must(n == (ssize_t)strlen(text) && !memcmp(got, text, (size_t)n), what);
}

static void put(int fd, const char *text, const char *what)
{
    must(write(fd, text, strlen(text)) == (ssize_t)strlen(text), what);
}

static struct sockaddr_in tcp_address(void)
{
    return (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(9000), .sin_addr.s_addr = htonl(0x7f000001)};
}

static int tcp_connect(void)
{
    struct sockaddr_in address = tcp_address();
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    must(!connect(fd, (void *)&address, sizeof address), "tcp connect");
    return fd;
}

static void set_up_sockets(void)
{
    struct sockaddr_in address = tcp_address();
    struct sockaddr_un path = {.sun_family = AF_UNIX, .sun_path = "/tmp/inside.sock"};
    int one = 1;
    tcp_listener = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(tcp_listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    address.sin_addr.s_addr = 0;
    must(!bind(tcp_listener, (void *)&address, sizeof address) && !listen(tcp_listener, 8), "tcp listen");
    tcp_client = tcp_connect();
    tcp_server = accept(tcp_listener, NULL, NULL);
    unix_listener = socket(AF_UNIX, SOCK_STREAM, 0);
    must(!bind(unix_listener, (void *)&path, sizeof path) && !listen(unix_listener, 8), "unix listen");
    must(!socketpair(AF_UNIX, SOCK_STREAM, 0, unix_pair), "socketpair");
    poller = epoll_create1(0);
    struct epoll_event interest = {.events = EPOLLIN};
    must(!epoll_ctl(poller, EPOLL_CTL_ADD, unix_pair[1], &interest), "epoll");
}

static void set_up_files(void)
{
    offset_file = open("/root/offset", O_RDWR | O_CREAT, 0644);
    put(offset_file, "hello world", "file");
    deleted_file = open("/root/deleted", O_RDWR | O_CREAT, 0644);
    put(deleted_file, "deleted but open", "file");
    must(!unlink("/root/deleted"), "unlink");
    must(!unlink("/etc/motd"), "unlink of a file of the image");
    int shm = open("/dev/shm/segment", O_RDWR | O_CREAT, 0600);
    must(!ftruncate(shm, 4096), "shm");
    shared_file = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, shm, 0);
    shared_anonymous = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    strcpy(shared_file, "in shm");
    strcpy(shared_anonymous, "anonymous");
}

static void arm(void)
{
    put(pipe_fds[1], "in the pipe", "pipe");
    put(unix_pair[0], "in the pair", "pair");
    put(tcp_client, "in the stream", "tcp");
    put(pty_host, "in the pty\n", "pty");
    eventfd_write(event, 3);
    must(lseek(offset_file, 6, SEEK_SET) == 6, "seek");
}

static void check(void)
{
    struct epoll_event ready;
    struct sockaddr_un path = {.sun_family = AF_UNIX, .sun_path = "/tmp/inside.sock"};
    eventfd_t count = 0;
    char text[32] = {0};
    int status;
    must(epoll_wait(poller, &ready, 1, 0) == 1, "epoll");
    expect(pipe_fds[0], "in the pipe", "pipe");
    expect(unix_pair[1], "in the pair", "pair");
    expect(tcp_server, "in the stream", "established tcp");
    expect(pty_guest, "in the pty\n", "pty");
    expect(offset_file, "world", "file offset");
    must(!eventfd_read(event, &count) && count == 3, "eventfd");
    must(pread(deleted_file, text, 16, 0) == 16 && !strcmp(text, "deleted but open"), "deleted file");
    must(access("/etc/motd", F_OK) < 0, "deleted file of the image stays deleted");
    must(!strcmp(shared_file, "in shm") && !strcmp(shared_anonymous, "anonymous"), "shared memory");
    must(!kill(child, 0) && waitpid(child, &status, WNOHANG) == 0, "child");
    long before = ticks;
    for (int i = 0; i < 2000 && ticks == before; i++) usleep(1000);
    must(ticks != before, "thread");
    int client = tcp_connect(), server = accept(tcp_listener, NULL, NULL);
    put(client, "new", "new tcp");
    expect(server, "new", "new tcp");
    close(client), close(server);
    client = socket(AF_UNIX, SOCK_STREAM, 0);
    must(!connect(client, (void *)&path, sizeof path), "unix connect");
    server = accept(unix_listener, NULL, NULL);
    put(client, "new", "new unix");
    expect(server, "new", "new unix");
    close(client), close(server);
}

static int keep(void)
{
    char line[64], drain[64];
    pthread_t thread;
    must(!pipe(pipe_fds) && !openpty(&pty_host, &pty_guest, NULL, NULL, NULL), "pipe and pty");
    event = eventfd(0, 0);
    set_up_files();
    set_up_sockets();
    if (!(child = fork())) for (;;) pause();
    must(!pthread_create(&thread, NULL, tick, NULL), "thread");
    arm();
    puts("ready"), fflush(stdout);
    for (int generation = 1; fgets(line, sizeof line, stdin); generation++) {
        check();
        fcntl(pty_host, F_SETFL, O_NONBLOCK);
        while (read(pty_host, drain, sizeof drain) > 0) {} // its echo
        arm();
        printf("good %d\n", generation), fflush(stdout);
    }
    return 0;
}

static int eat(long mebibytes)
{
    for (long i = 0; i < mebibytes; i++) {
        char *memory = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED) return 2;
        memset(memory, 1, 1 << 20);
    }
    puts("full"), fflush(stdout);
    return getchar() == EOF;
}

static int forks(long count)
{
    long made = 0;
    for (; made < count; made++) {
        pid_t pid = fork();
        if (pid < 0) break;
        if (!pid) for (;;) pause();
    }
    printf("made %ld\n", made), fflush(stdout);
    return getchar() == EOF;
}

static int try_connect(const char *address, int port)
{
    struct sockaddr_in target = {.sin_family = AF_INET, .sin_port = htons((unsigned short)port)};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    char byte;
    inet_pton(AF_INET, address, &target.sin_addr);
    if (connect(fd, (void *)&target, sizeof target)) return puts(strerror(errno)), 0;
    ssize_t n = read(fd, &byte, 1);
    puts(n == 1 ? "answered" : n == 0 ? "closed" : strerror(errno));
    return 0;
}

// As root, speak on the agent's port (which can be opened only once) what no agent would.
static int babble(void)
{
    char path[64], link[64], junk[4096];
    memset(junk, 'x', sizeof junk);
    int agent = (int)syscall(SYS_pidfd_open, 1, 0);
    for (int fd = 0; fd < 64; fd++) {
        snprintf(path, sizeof path, "/proc/1/fd/%d", fd);
        ssize_t size = readlink(path, link, sizeof link - 1);
        link[size > 0 ? size : 0] = 0;
        if (strcmp(link, "/dev/vport0p1")) continue;
        int port = (int)syscall(SYS_pidfd_getfd, agent, fd, 0);
        must(port >= 0 && write(port, junk, sizeof junk) > 0, "babble");
        return getchar() == EOF;
    }
    return 3;
}

// Numbers drawn from the kernel, not from a pool that the library keeps.
static int draw(void)
{
    unsigned char bytes[16];
    must(getrandom(bytes, sizeof bytes, 0) == sizeof bytes, "getrandom");
    for (size_t i = 0; i < sizeof bytes; i++) printf("%02x", bytes[i]);
    puts("");
    return 0;
}

static int tell_time(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    printf("%ld.%09ld\n", (long)now.tv_sec, now.tv_nsec);
    return 0;
}

int main(int argc, char **argv)
{
    signal(SIGPIPE, SIG_IGN);
    if (argc == 2 && !strcmp(argv[1], "keep")) return keep();
    if (argc == 3 && !strcmp(argv[1], "eat")) return eat(atol(argv[2]));
    if (argc == 3 && !strcmp(argv[1], "forks")) return forks(atol(argv[2]));
    if (argc == 4 && !strcmp(argv[1], "connect")) return try_connect(argv[2], atoi(argv[3]));
    if (argc == 2 && !strcmp(argv[1], "babble")) return babble();
    if (argc == 2 && !strcmp(argv[1], "draw")) return draw();
    if (argc == 2 && !strcmp(argv[1], "time")) return tell_time();
    if (argc == 2 && !strcmp(argv[1], "burn")) for (;;) {}
    return 64;
}
