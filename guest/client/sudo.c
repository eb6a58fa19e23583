/* sudo for images that need not have a Python: asks the agent, as guest_sudo.py of the base image does. It hands over its
   descriptors, its arguments and an environment, passes signals on, and ends as the program ends. Linked statically, and
   it reads /etc/passwd by itself: the image may have another C library, or none. */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <pwd.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

static const char NAME[] = "\0wardian-sudo";
static const char PATH[] = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
static const char USAGE[] = "usage: sudo [-EHikKlnSsvV] [-u user] [-D directory] [VAR=value] [-i | -s] [command [arg ...]]\n";
static const char *const KEPT[] = {"TERM", "LANG", "COLORTERM", "DISPLAY", "XAUTHORITY", "LS_COLORS", "TZ"};
static const int PASSED[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGWINCH};
enum { TEXT_MAX = 2 << 20 };

static struct request {
    const char *user, *directory, *keep_named;
    bool keep_all, set_home, login, shell, list, credentials;
} request = {.user = "root", .directory = ""};

static struct text {
    char bytes[TEXT_MAX];
    uint32_t size;
} text;
static int agent = -1;

static __attribute__((format(printf, 1, 2), noreturn)) void fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fputs("sudo: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    exit(1);
}

static void append(const void *bytes, size_t size) {
    if (size > TEXT_MAX - text.size) fail("the command and its environment are too long");
    memcpy(text.bytes + text.size, bytes, size);
    text.size += (uint32_t)size;
}

static void add(const char *string) { append(string, strlen(string) + 1); }

static void add_pair(const char *name, const char *value) {
    append(name, strlen(name));
    append("=", 1);
    add(value);
}

/* A user by name or number, or "#number"; its strings stay. */
static const struct passwd *find_user(const char *name, uid_t number, bool by_number) {
    FILE *file = fopen("/etc/passwd", "re");
    struct passwd *found = NULL;
    while (file && (found = fgetpwent(file)))
        if (by_number ? found->pw_uid == number : !strcmp(found->pw_name, name)) break;
    if (!found) return NULL;
    struct passwd *kept = malloc(sizeof *kept);
    if (!kept) fail("no memory");
    *kept = (struct passwd){.pw_name = strdup(found->pw_name), .pw_dir = strdup(found->pw_dir), .pw_shell = strdup(found->pw_shell),
                            .pw_uid = found->pw_uid};
    fclose(file);
    return kept;
}

static const struct passwd *target_user(void) {
    const char *name = request.user;
    char *end = NULL;
    unsigned long number = name[0] == '#' ? strtoul(name + 1, &end, 10) : 0;
    const struct passwd *user = name[0] == '#' && (*end || !name[1]) ? NULL : find_user(name, (uid_t)number, name[0] == '#');
    if (!user) fail("unknown user %s", name);
    return user;
}

/* The options; what is left is the command and the variables before it. */
static char **parse(int count, char **words) {
    static const struct option names[] = {
        {"user", required_argument, NULL, 'u'}, {"login", no_argument, NULL, 'i'}, {"shell", no_argument, NULL, 's'},
        {"preserve-env", optional_argument, NULL, 'E'}, {"set-home", no_argument, NULL, 'H'}, {"non-interactive", no_argument, NULL, 'n'},
        {"stdin", no_argument, NULL, 'S'}, {"validate", no_argument, NULL, 'v'}, {"version", no_argument, NULL, 'V'},
        {"help", no_argument, NULL, 'h'}, {"list", no_argument, NULL, 'l'}, {"reset-timestamp", no_argument, NULL, 'k'},
        {"remove-timestamp", no_argument, NULL, 'K'}, {"chdir", required_argument, NULL, 'D'}, {"prompt", required_argument, NULL, 'p'},
        {NULL, 0, NULL, 0}};
    for (int letter; (letter = getopt_long(count, words, "+u:isEHnSvVhlkKD:p:A", names, NULL)) != -1;) switch (letter) {
            case 'u': request.user = optarg; break;
            case 'D': request.directory = optarg; break;
            case 'i': request.login = true; break;
            case 's': request.shell = true; break;
            case 'H': request.set_home = true; break;
            case 'l': request.list = true; break;
            case 'k': case 'K': case 'v': request.credentials = true; break;
            case 'n': case 'S': case 'p': case 'A': break;
            case 'E':
                if (optarg) request.keep_named = optarg;
                else request.keep_all = true;
                break;
            case 'V': case 'h': printf("sudo of the sandbox: asks the agent\n%s", USAGE); exit(0);
            default: exit(1); /* getopt has said why */
        }
    return words + optind;
}

static bool named(const char *name, size_t size) {
    for (const char *at = request.keep_named; at && *at; at += strcspn(at, ","), at += *at == ',')
        if (strcspn(at, ",") == size && !strncmp(at, name, size)) return true;
    return false;
}

static bool kept(const char *variable, bool keep_all) {
    size_t size = strcspn(variable, "=");
    for (size_t i = 0; i < sizeof KEPT / sizeof *KEPT; i++)
        if (strlen(KEPT[i]) == size && !strncmp(KEPT[i], variable, size)) return true;
    return keep_all || !strncmp(variable, "LC_", 3) || named(variable, size);
}

static bool replaced(const char *variable, bool home) {
    static const char *const ours[] = {"USER=", "LOGNAME=", "PATH=", "SHELL=", "SUDO_USER=", "SUDO_UID=", "SUDO_GID=", "SUDO_COMMAND="};
    for (size_t i = 0; i < sizeof ours / sizeof *ours; i++)
        if (!strncmp(ours[i], variable, strlen(ours[i]))) return true;
    return home && !strncmp(variable, "HOME=", 5);
}

/* sudo's own environment: little of the caller's, unless it is asked to keep it. Returns how many variables there are. */
static uint32_t add_environment(const struct passwd *target, const char *command, char **given, char **end) {
    bool keep_all = request.keep_all && !request.login, home = !keep_all || request.set_home;
    const struct passwd *caller = find_user("", getuid(), true);
    char number[16];
    uint32_t count = 8;
    for (char **at = environ; *at; at++)
        if (kept(*at, keep_all) && !replaced(*at, home)) add(*at), count++;
    add(PATH);
    add_pair("USER", target->pw_name);
    add_pair("LOGNAME", target->pw_name);
    add_pair("SHELL", *target->pw_shell ? target->pw_shell : "/bin/sh");
    add_pair("SUDO_USER", caller ? caller->pw_name : "");
    snprintf(number, sizeof number, "%u", getuid());
    add_pair("SUDO_UID", number);
    snprintf(number, sizeof number, "%u", getgid());
    add_pair("SUDO_GID", number);
    add_pair("SUDO_COMMAND", command);
    if (home) add_pair("HOME", target->pw_dir), count++;
    for (; given < end; given++) add(*given), count++;
    return count;
}

/* The words as one that a shell takes apart again. */
static char *quoted(char **words) {
    size_t size = 1;
    for (char **at = words; *at; at++) size += 4 * strlen(*at) + 3;
    char *line = malloc(size), *to = line;
    if (!line) fail("no memory");
    for (char **at = words; *at; at++) {
        if (at != words) *to++ = ' ';
        *to++ = '\'';
        for (const char *from = *at; *from; from++) {
            if (*from == '\'') to = stpcpy(to, "'\\''");
            else *to++ = *from;
        }
        *to++ = '\'';
    }
    *to = 0;
    return line;
}

static void pass_on(int number) {
    uint8_t byte = (uint8_t)number;
    int before = errno;
    if (write(agent, &byte, 1) < 0) {} /* the agent is gone: the read says so */
    errno = before;
}

static int here(void) {
    int fd = open(".", O_PATH | O_DIRECTORY | O_CLOEXEC);
    return fd >= 0 ? fd : open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
}

static void ask(uint32_t arguments, uint32_t variables, bool terminal) {
    uint32_t numbers[] = {text.size, arguments, variables, terminal};
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(4 * sizeof(int))];
    } control = {0};
    struct iovec iov = {numbers, sizeof numbers};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    struct cmsghdr *part = CMSG_FIRSTHDR(&message);
    int fds[4] = {0, 1, 2, here()};
    for (int i = 0; i < 3; i++)
        if (fcntl(i, F_GETFD) < 0) fds[i] = open("/dev/null", O_RDWR | O_CLOEXEC);
    part->cmsg_level = SOL_SOCKET;
    part->cmsg_type = SCM_RIGHTS;
    part->cmsg_len = CMSG_LEN(sizeof fds);
    memcpy(CMSG_DATA(part), fds, sizeof fds);
    if (sendmsg(agent, &message, 0) != sizeof numbers) fail("the agent does not listen: %s", strerror(errno));
    for (uint32_t sent = 0; sent < text.size;) {
        ssize_t put = write(agent, text.bytes + sent, text.size - sent);
        if (put < 0 && errno != EINTR) fail("the agent does not listen: %s", strerror(errno));
        if (put > 0) sent += (uint32_t)put;
    }
}

static int await(void) {
    int status;
    for (size_t have = 0; have < sizeof status;) {
        ssize_t got = read(agent, (char *)&status + have, sizeof status - have);
        if (got == 0 || (got < 0 && errno != EINTR)) fail("the agent hung up");
        if (got > 0) have += (size_t)got;
    }
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

static void reach_agent(void) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    memcpy(address.sun_path, NAME, sizeof NAME - 1);
    agent = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    /* Or the kernel does not say who we are. */
    if (agent < 0 || setsockopt(agent, SOL_SOCKET, SO_PASSCRED, &(int){1}, sizeof(int)) ||
        connect(agent, (struct sockaddr *)&address, offsetof(struct sockaddr_un, sun_path) + sizeof NAME - 1))
        fail("the agent does not answer: %s", strerror(errno));
}

int main(int count, char **words) {
    char **variables = parse(count, words), **command = variables;
    if (request.list) return puts("(ALL : ALL) NOPASSWD: ALL") < 0;
    while (*command && strchr(*command, '=') && **command != '=') command++;
    const struct passwd *target = target_user();
    const char *own = getenv("SHELL"), *shell = *target->pw_shell ? target->pw_shell : "/bin/sh";
    bool by_shell = request.login || request.shell;
    if (!*command && !by_shell) {
        if (request.credentials) return 0;
        fputs(USAGE, stderr);
        return 1;
    }
    add(target->pw_name);
    add(*request.directory || !request.login ? request.directory : target->pw_dir);
    uint32_t arguments = 0;
    char *line = quoted(command);
    if (by_shell) {
        add(!request.login && own ? own : shell), arguments++;
        if (request.login) add("-l"), arguments++;
        if (*command) add("-c"), add(line), arguments += 2;
    } else {
        for (char **at = command; *at; at++) add(*at), arguments++;
    }
    uint32_t environment = add_environment(target, line, variables, command);
    bool terminal = isatty(0) && isatty(1);
    struct termios before, raw;
    reach_agent();
    for (size_t i = 0; i < sizeof PASSED / sizeof *PASSED; i++)
        sigaction(PASSED[i], &(struct sigaction){.sa_handler = pass_on, .sa_flags = SA_RESTART}, NULL);
    ask(arguments, environment, terminal);
    terminal = terminal && !tcgetattr(0, &before); /* raw meanwhile: the program has its own */
    if (terminal) {
        raw = before;
        cfmakeraw(&raw);
        tcsetattr(0, TCSAFLUSH, &raw);
    }
    int status = await();
    if (terminal) tcsetattr(0, TCSADRAIN, &before);
    return status;
}
