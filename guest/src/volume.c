/* Volumes: file systems whose files are the host's. The kernel's FUSE requests travel to the host as they are, one
   packet a frame, and its answers come back.

   This agent may itself use a volume (a file op, an exec in one), and then waits for an answer that must not wait for
   it. So from the first mount on a thread, the ferry, reads the link: it carries answers over by itself and puts every
   other frame into a queue, for the loop. Frames are packets, so both may send. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "agent.h"

enum {
    MOUNTS_MAX = 16,
    VOLUME_ID_MAX = 64,
    UNANSWERED_MAX = 64, /* requests per mount */
    QUEUE_MAX = 64 << 20,
    ATTACH_PATIENCE_MS = 2000,
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

/* A frame for the loop. */
struct parcel {
    struct parcel *next;
    size_t size;
    uint8_t bytes[];
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct parcel *parcels, **parcels_end = &parcels;
static size_t parcels_size;
static bool started, resting;
static uint64_t attach_since; /* ms; 0: no ATTACH waits for the loop */
static int to_ferry, to_loop; /* eventfds */
static struct source news;

static void ring(int fd) {
    uint64_t one = 1;
    if (write(fd, &one, sizeof one) < 0) return; /* it is ringing already */
}

static void hush(int fd) {
    uint64_t count;
    if (read(fd, &count, sizeof count) < 0) return;
}

/* ---- the ferry; with the lock held, but for waiting ---- */

static bool send_frame(const uint8_t *frame, size_t size) {
    ssize_t sent;
    do sent = send(settings.link, frame, size, MSG_DONTWAIT | MSG_NOSIGNAL);
    while (sent < 0 && errno == EINTR);
    return sent >= 0 || errno != EAGAIN; /* a link that is gone is noticed by who reads it */
}

static void send_grant(const struct mount *mount, uint32_t more) {
    uint8_t frame[HEADER + 4] = {GRANT};
    struct pollfd writable = {settings.link, POLLOUT, 0};
    memcpy(frame + 4, &mount->id, 4);
    memcpy(frame + HEADER, &more, 4);
    while (!send_frame(frame, sizeof frame)) poll(&writable, 1, -1);
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
        if (!send_frame(asked->frame, asked->size)) return true;
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

/* A new host attaches, but the loop itself waits for a volume that only the next MOUNT can bring back: it must not. */
static void refuse_all(void) {
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

/* True when the frame is for a mount, and was carried over. */
static bool carry(uint8_t *frame, size_t size) {
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

static void receive(void) {
    static uint8_t frame[HEADER + PAYLOAD_MAX + 2];
    for (int turn = 0; turn < 16 && parcels_size < QUEUE_MAX; turn++) {
        ssize_t size = recv(settings.link, frame, sizeof frame - 1, MSG_DONTWAIT);
        if (size < 0 && (errno == EAGAIN || errno == EINTR)) return;
        if (size <= 0) {
            struct pollfd now = {settings.link, POLLIN | POLLRDHUP, 0};
            if (size == 0 && poll(&now, 1, 0) >= 0 && !(now.revents & (POLLRDHUP | POLLHUP))) return; /* an empty packet */
            link_lost();
        }
        if (carry(frame, (size_t)size)) continue;
        if (frame[0] == ATTACH && !attach_since) attach_since = now_ms();
        struct parcel *parcel = malloc(sizeof *parcel + (size_t)size);
        if (!parcel) link_lost(); /* a frame lost would be a lie */
        *parcel = (struct parcel){.size = (size_t)size};
        memcpy(parcel->bytes, frame, (size_t)size);
        *parcels_end = parcel;
        parcels_end = &parcel->next;
        parcels_size += parcel->size;
        ring(to_loop);
    }
}

static bool wants_requests(const struct mount *mount) {
    return mount->id && !resting && mount->unanswered < UNANSWERED_MAX && mount->send_window >= PAYLOAD_MAX;
}

__attribute__((noreturn)) static void *ferry(void *unused) {
    struct pollfd waits[2 + MOUNTS_MAX];
    bool blocked = false;
    (void)unused;
    pthread_mutex_lock(&lock);
    for (;;) {
        waits[0] = (struct pollfd){settings.link, (short)((parcels_size < QUEUE_MAX ? POLLIN | POLLRDHUP : 0) | (blocked ? POLLOUT : 0)), 0};
        waits[1] = (struct pollfd){to_ferry, POLLIN, 0};
        for (int i = 0; i < MOUNTS_MAX; i++)
            waits[2 + i] = (struct pollfd){wants_requests(&mounts[i]) && !blocked ? mounts[i].fd : -1, POLLIN, 0};
        pthread_mutex_unlock(&lock);
        poll(waits, 2 + MOUNTS_MAX, attach_since ? ATTACH_PATIENCE_MS / 4 : -1);
        pthread_mutex_lock(&lock);
        if (waits[1].revents) hush(to_ferry);
        if (waits[0].revents & (POLLIN | POLLHUP | POLLERR | POLLRDHUP)) receive();
        blocked = false;
        for (int i = 0; i < MOUNTS_MAX; i++) {
            struct mount *mount = &mounts[i];
            if (waits[2 + i].revents && waits[2 + i].fd == mount->fd && wants_requests(mount)) read_request(mount);
            if (mount->id && send_asked(mount)) blocked = true;
        }
        if (attach_since && now_ms() - attach_since > ATTACH_PATIENCE_MS) refuse_all();
        if (resting) ring(to_loop); /* perhaps that was the last answer */
    }
}

/* ---- the loop's side ---- */

bool ferry_runs(void) { return started; }

int ferry_descriptor(void) { return to_loop; }

bool ferry_waiting(void) {
    pthread_mutex_lock(&lock);
    bool waiting = parcels;
    if (!waiting) hush(to_loop);
    pthread_mutex_unlock(&lock);
    return waiting;
}

ssize_t ferry_take(uint8_t *frame, size_t capacity) {
    pthread_mutex_lock(&lock);
    struct parcel *parcel = parcels;
    if (parcel) {
        parcels = parcel->next;
        if (!parcels) parcels_end = &parcels;
        if (parcels_size >= QUEUE_MAX) ring(to_ferry);
        parcels_size -= parcel->size;
    }
    pthread_mutex_unlock(&lock);
    if (!parcel) return -1;
    size_t size = parcel->size < capacity ? parcel->size : capacity;
    memcpy(frame, parcel->bytes, size);
    free(parcel);
    return (ssize_t)size;
}

void ferry_rest(bool rest) {
    if (!started) return;
    pthread_mutex_lock(&lock);
    resting = rest;
    pthread_mutex_unlock(&lock);
    ring(to_ferry);
}

bool ferry_rests(void) {
    bool rests = true;
    pthread_mutex_lock(&lock);
    for (struct mount *mount = mounts; mount < mounts + MOUNTS_MAX; mount++)
        if (mount->id && mount->unanswered) rests = false;
    pthread_mutex_unlock(&lock);
    return rests;
}

void volumes_detach(void) {
    if (!started) return;
    pthread_mutex_lock(&lock);
    for (struct mount *mount = mounts; mount < mounts + MOUNTS_MAX; mount++) mount->id = 0;
    resting = false;
    attach_since = 0;
    pthread_mutex_unlock(&lock);
}

static void note(struct source *source) { (void)source; }

static int start(void) {
    pthread_attr_t small;
    pthread_t thread;
    if (started) return 0;
    to_ferry = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    to_loop = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    news = (struct source){.fd = to_loop, .wake = note};
    if (to_ferry < 0 || to_loop < 0 || source_add(&news, EPOLLIN)) return EMFILE;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 128 << 10);
    int error = pthread_create(&thread, &small, ferry, NULL);
    started = !error;
    if (started) link_rearm();
    return error;
}

/* Connect a mount with the stream of a host that now answers for it. */
static void connect_mount(struct mount *mount, uint32_t id) {
    pthread_mutex_lock(&lock);
    mount->id = id;
    mount->send_window = mount->receive_window = WINDOW;
    mount->consumed = 0;
    for (struct asked *asked = mount->asked; asked; asked = asked->next) asked->sent = false;
    pthread_mutex_unlock(&lock);
    ring(to_ferry);
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
    pthread_mutex_lock(&lock);
    *made = (struct mount){.fd = fd};
    made->asked_end = &made->asked;
    strcpy(made->path, path);
    strcpy(made->volume, volume);
    pthread_mutex_unlock(&lock);
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
    if (!error) error = start();
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
        pthread_mutex_lock(&lock);
        int fd = mount->id ? 0 : mount->fd;
        if (fd) {
            while (mount->asked) forget_asked(mount, &mount->asked);
            mount->fd = 0;
        }
        pthread_mutex_unlock(&lock);
        if (!fd) continue;
        close(fd);
        if (!settings.native) umount2(mount->path, MNT_DETACH);
    }
    reply_ok(id, FIN);
}
