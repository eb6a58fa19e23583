/* Volumes: file systems whose files are the host's. The kernel's FUSE requests travel to the host as they are, one
   packet a frame, and its answers come back; the ferry carries both (ferry.c). */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ferry.h"

enum {
    VOLUME_ID_MAX = 64,
    UNANSWERED_MAX = 64, /* requests per mount */
    FUSE_HEADER = 40,
    FUSE_ANSWER = 16,
    FUSE_FORGET = 2, FUSE_INTERRUPT = 36, FUSE_BATCH_FORGET = 42, /* have no answer */
};

/* A request that the host has not answered; kept, so that another host process can be asked again. */
struct asked {
    struct asked *next;
    uint64_t unique;
    size_t size;
    bool sent;
    uint8_t frame[]; /* header and request */
};

static struct mount {
    int fd; /* of /dev/fuse; 0: free */
    uint32_t id; /* the stream; 0: no host */
    uint32_t send_window, receive_window, consumed;
    char path[PATH_MAX], volume[VOLUME_ID_MAX];
    struct asked *asked, **asked_end;
    unsigned unanswered;
} mounts[MOUNTS_MAX];

/* ---- carrying; by the ferry, with the lock ---- */

static void send_grant(const struct mount *mount, uint32_t more) {
    uint8_t frame[HEADER + 4] = {GRANT};
    struct pollfd writable = {settings.link, POLLOUT, 0};
    memcpy(frame + 4, &mount->id, 4);
    memcpy(frame + HEADER, &more, 4);
    while (!ferry_send(frame, sizeof frame)) poll(&writable, 1, -1);
}

static void forget_asked(struct mount *mount, struct asked **at) {
    struct asked *asked = *at;
    *at = asked->next;
    if (mount->asked_end == &asked->next) mount->asked_end = at;
    mount->unanswered--;
    free(asked);
}

/* True when something could not be sent now. */
static bool send_asked(struct mount *mount) {
    for (struct asked **at = &mount->asked; *at;) {
        struct asked *asked = *at;
        uint32_t opcode, size = (uint32_t)asked->size - HEADER;
        if (asked->sent) {
            at = &asked->next;
            continue;
        }
        if (mount->send_window < size) return false; /* a GRANT will come */
        memcpy(asked->frame + 4, &mount->id, 4);
        if (!ferry_send(asked->frame, asked->size)) return true;
        mount->send_window -= size;
        asked->sent = true;
        memcpy(&opcode, asked->frame + HEADER + 4, 4);
        if (opcode == FUSE_FORGET || opcode == FUSE_INTERRUPT || opcode == FUSE_BATCH_FORGET) forget_asked(mount, at);
        else at = &asked->next;
    }
    return false;
}

static void refuse(const struct mount *mount, uint64_t unique, int error) {
    int32_t answer[4] = {FUSE_ANSWER, -error};
    memcpy(answer + 2, &unique, 8);
    if (write(mount->fd, answer, sizeof answer) < 0 && errno != ENOENT) say("a volume's refusal: %s", strerror(errno));
}

void volumes_refuse(void) {
    for (struct mount *mount = mounts; mount < mounts + MOUNTS_MAX; mount++)
        while (mount->asked) {
            refuse(mount, mount->asked->unique, EIO);
            forget_asked(mount, &mount->asked);
        }
}

static void read_request(struct mount *mount) {
    static uint8_t request[PAYLOAD_MAX];
    ssize_t size = read(mount->fd, request, sizeof request);
    if (size < 0 && errno != EAGAIN && errno != EINTR) mount->id = 0; /* somebody inside has unmounted it */
    if (size < FUSE_HEADER) return;
    struct asked *asked = malloc(sizeof *asked + HEADER + (size_t)size);
    uint64_t unique;
    memcpy(&unique, request + 8, 8);
    if (!asked) { /* the program inside is told, not left waiting */
        refuse(mount, unique, ENOMEM);
        return;
    }
    *asked = (struct asked){.size = HEADER + (size_t)size, .unique = unique};
    memset(asked->frame, 0, HEADER);
    asked->frame[0] = DATA;
    memcpy(asked->frame + HEADER, request, (size_t)size);
    *mount->asked_end = asked;
    mount->asked_end = &asked->next;
    mount->unanswered++;
}

static void give_answer(struct mount *mount, const uint8_t *answer, size_t size) {
    uint64_t unique;
    if (size < FUSE_ANSWER || size > mount->receive_window) return;
    mount->receive_window -= (uint32_t)size;
    mount->consumed += (uint32_t)size;
    memcpy(&unique, answer + 8, 8);
    for (struct asked **at = &mount->asked; *at; at = &(*at)->next)
        if ((*at)->unique == unique) {
            if (write(mount->fd, answer, size) < 0 && errno != ENOENT) say("a volume's answer: %s", strerror(errno));
            forget_asked(mount, at);
            break;
        }
    if (mount->consumed < WINDOW / 4) return;
    mount->receive_window += mount->consumed;
    send_grant(mount, mount->consumed);
    mount->consumed = 0;
}

bool volumes_carry(const uint8_t *frame, size_t size) {
    uint32_t id, more;
    if (size < HEADER) return false;
    memcpy(&id, frame + 4, 4);
    for (struct mount *mount = mounts; id && mount < mounts + MOUNTS_MAX; mount++) {
        if (mount->id != id) continue;
        if (frame[0] == DATA) {
            give_answer(mount, frame + HEADER, size - HEADER);
        } else if (frame[0] == GRANT && size == HEADER + 4) {
            memcpy(&more, frame + HEADER, 4);
            if (more <= WINDOW - mount->send_window) mount->send_window += more;
        } else {
            return false;
        }
        return true;
    }
    return false;
}

static bool wants_requests(const struct mount *mount) {
    return mount->id && mount->unanswered < UNANSWERED_MAX && mount->send_window >= PAYLOAD_MAX;
}

void volumes_await(struct pollfd waits[MOUNTS_MAX], bool rest) {
    for (int i = 0; i < MOUNTS_MAX; i++)
        waits[i] = (struct pollfd){!rest && wants_requests(&mounts[i]) ? mounts[i].fd : -1, POLLIN, 0};
}

bool volumes_ask(const struct pollfd waits[MOUNTS_MAX], bool rest) {
    bool blocked = false;
    for (int i = 0; i < MOUNTS_MAX; i++) {
        struct mount *mount = &mounts[i];
        if (waits[i].revents && waits[i].fd == mount->fd && !rest && wants_requests(mount)) read_request(mount);
        if (mount->id && send_asked(mount)) blocked = true;
    }
    return blocked;
}

/* Forget a mount; its descriptor, 0 for none. */
static int let_go(struct mount *mount) {
    int fd = mount->fd;
    while (fd && mount->asked) forget_asked(mount, &mount->asked);
    mount->fd = 0;
    mount->id = 0;
    return fd;
}

/* With its descriptor closed a volume fails whoever waits for it, and whoever comes. */
void volumes_abandon(void) {
    for (struct mount *mount = mounts; mount < mounts + MOUNTS_MAX; mount++) {
        int fd = let_go(mount);
        if (fd) close(fd);
    }
}

/* ---- the loop's side ---- */

bool volumes_rest(void) {
    bool rest = true;
    ferry_lock();
    for (struct mount *mount = mounts; mount < mounts + MOUNTS_MAX; mount++)
        if (mount->id && mount->unanswered) rest = false;
    ferry_unlock();
    return rest;
}

void volumes_detach(void) {
    if (!ferry_runs()) return;
    ferry_lock();
    for (struct mount *mount = mounts; mount < mounts + MOUNTS_MAX; mount++) mount->id = 0;
    ferry_reset();
    ferry_unlock();
}

/* Connect a mount with the stream of a host that now answers for it. */
static void connect_mount(struct mount *mount, uint32_t id) {
    ferry_lock();
    mount->id = id;
    mount->send_window = mount->receive_window = WINDOW;
    mount->consumed = 0;
    for (struct asked *asked = mount->asked; asked; asked = asked->next) asked->sent = false;
    ferry_unlock();
    ferry_look();
}

/* A descriptor of /dev/fuse with a file system at `path`; errno. */
static int mount_at(const char *path, int *fd) {
    static const struct user root = {.uid = 0};
    char options[128];
    int error = make_parents(path, &root);
    if (!error && mkdir(path, 0755) && errno != EEXIST) error = errno;
    if (error) return error;
    *fd = open("/dev/fuse", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (*fd < 0) return errno;
    snprintf(options, sizeof options, "fd=%d,rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other", *fd);
    if (mount("volume", path, "fuse", MS_NOSUID | MS_NODEV, options) == 0) return 0;
    error = errno;
    close(*fd);
    return error;
}

/* Natively a mount would be the host's: a test gives a socket that stands for the kernel. */
static int stand_in(int *fd) {
    *fd = settings.fuse < 0 ? -1 : fcntl(settings.fuse, F_DUPFD_CLOEXEC, 0);
    return *fd < 0 ? EOPNOTSUPP : 0;
}

static int make_mount(struct mount *made, const char *path, const char *volume) {
    int fd, error = settings.native ? stand_in(&fd) : mount_at(path, &fd);
    if (error) return error;
    ferry_lock();
    *made = (struct mount){.fd = fd};
    made->asked_end = &made->asked;
    strcpy(made->path, path);
    strcpy(made->volume, volume);
    ferry_unlock();
    return 0;
}

void op_mount(uint32_t id, struct request *request) {
    const char *path = request_text(request, 2, ""), *volume = request_text(request, 3, "");
    struct mount *place = NULL;
    int error = request->bad || *path != '/' || strlen(path) >= PATH_MAX || strlen(volume) >= VOLUME_ID_MAX ? EINVAL : 0;
    for (struct mount *mount = mounts; !error && mount < mounts + MOUNTS_MAX; mount++) {
        if (!mount->fd && !place) place = mount;
        if (mount->fd && !strcmp(mount->path, path)) {
            error = strcmp(mount->volume, volume) ? EBUSY : 0;
            place = mount;
            break;
        }
    }
    if (!error && !place) error = EMFILE;
    if (!error) error = ferry_start();
    if (!error && !place->fd) error = make_mount(place, path, volume);
    if (error) {
        reply_error(id, error, "%s: %s", path, strerror(error));
        return;
    }
    reply_ok(id, 0);
    connect_mount(place, id);
}

/* What no host answers for goes: its programs get ENOTCONN instead of waiting for ever. */
void op_unmount(uint32_t id, struct request *request) {
    (void)request;
    for (struct mount *mount = mounts; mount < mounts + MOUNTS_MAX; mount++) {
        ferry_lock();
        int fd = mount->id ? 0 : let_go(mount);
        ferry_unlock();
        if (!fd) continue;
        close(fd);
        if (!settings.native) umount2(mount->path, MNT_DETACH);
    }
    reply_ok(id, FIN);
}
