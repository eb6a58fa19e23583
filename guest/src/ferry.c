/* The ferry. This agent may itself use a volume (a file op, an exec in one), and then waits for an answer that must not
   wait for it. So from the first mount on a thread, the ferry, reads the link: it carries volumes' answers over by itself
   and puts every other frame into a queue, for the loop. Frames are packets, so both may send.

   When the link ends the ferry lets go of every volume, so that the loop waits for none, leaves the rest to it, and ends. */
#include "ferry.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    QUEUE_MAX = 64 << 20,
    ATTACH_PATIENCE_MS = 2000,
    STACK = 128 << 10,
};

/* A frame for the loop. */
struct parcel {
    struct parcel *next;
    size_t size;
    uint8_t bytes[];
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct parcel *parcels, **parcels_end = &parcels;
static size_t parcels_size;
static bool started, resting, ended;
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

void ferry_lock(void) { pthread_mutex_lock(&lock); }

void ferry_unlock(void) { pthread_mutex_unlock(&lock); }

void ferry_look(void) { ring(to_ferry); }

/* ---- the thread; with the lock held, but for waiting ---- */

bool ferry_send(const uint8_t *frame, size_t size) {
    ssize_t sent;
    do sent = send(settings.link, frame, size, MSG_DONTWAIT | MSG_NOSIGNAL);
    while (sent < 0 && errno == EINTR);
    return sent >= 0 || errno != EAGAIN; /* a link that is gone is noticed by who reads it */
}

static bool still_there(void) {
    struct pollfd now = {settings.link, POLLIN | POLLRDHUP, 0};
    return poll(&now, 1, 0) >= 0 && !(now.revents & (POLLRDHUP | POLLHUP));
}

/* False when there is no memory: a frame lost would be a lie. */
static bool queue(const uint8_t *frame, size_t size) {
    struct parcel *parcel = malloc(sizeof *parcel + size);
    if (!parcel) return false;
    *parcel = (struct parcel){.size = size};
    memcpy(parcel->bytes, frame, size);
    *parcels_end = parcel;
    parcels_end = &parcel->next;
    parcels_size += size;
    ring(to_loop);
    return true;
}

/* False when the link has ended. */
static bool receive(void) {
    static uint8_t frame[HEADER + PAYLOAD_MAX + 2];
    for (int turn = 0; turn < 16 && parcels_size < QUEUE_MAX; turn++) {
        ssize_t size = recv(settings.link, frame, sizeof frame - 1, MSG_DONTWAIT);
        if (size < 0) return errno == EAGAIN || errno == EINTR;
        if (size == 0 && still_there()) return true; /* an empty packet and the end look alike */
        if (size == 0) return false;
        if (volumes_carry(frame, (size_t)size)) continue;
        if (frame[0] == ATTACH && !attach_since) attach_since = now_ms();
        if (!queue(frame, (size_t)size)) return false;
    }
    return true;
}

static void *ferry(void *unused) {
    struct pollfd waits[2 + MOUNTS_MAX];
    bool blocked = false;
    (void)unused;
    ferry_lock();
    for (;;) {
        waits[0] = (struct pollfd){settings.link, (short)((parcels_size < QUEUE_MAX ? POLLIN | POLLRDHUP : 0) | (blocked ? POLLOUT : 0)), 0};
        waits[1] = (struct pollfd){to_ferry, POLLIN, 0};
        volumes_await(waits + 2, resting || blocked);
        ferry_unlock();
        poll(waits, 2 + MOUNTS_MAX, attach_since ? ATTACH_PATIENCE_MS / 4 : -1);
        ferry_lock();
        if (waits[1].revents) hush(to_ferry);
        if (waits[0].revents & (POLLIN | POLLHUP | POLLERR | POLLRDHUP) && !receive()) break;
        blocked = volumes_ask(waits + 2, resting);
        /* A new host attaches, but the loop itself waits for a volume that only the next MOUNT can bring back. */
        if (attach_since && now_ms() - attach_since > ATTACH_PATIENCE_MS) volumes_refuse();
        if (resting) ring(to_loop); /* perhaps that was the last answer */
    }
    volumes_abandon();
    ended = true;
    ring(to_loop);
    ferry_unlock();
    return NULL;
}

/* ---- the loop's side ---- */

bool ferry_runs(void) { return started; }

int ferry_descriptor(void) { return to_loop; }

bool ferry_waiting(void) {
    ferry_lock();
    bool waiting = parcels || ended;
    if (!waiting) hush(to_loop);
    ferry_unlock();
    return waiting;
}

ssize_t ferry_take(uint8_t *frame, size_t capacity) {
    ferry_lock();
    struct parcel *parcel = ended ? NULL : parcels; /* of a host that is gone nothing is done any more */
    if (parcel) {
        parcels = parcel->next;
        if (!parcels) parcels_end = &parcels;
        if (parcels_size >= QUEUE_MAX) ring(to_ferry);
        parcels_size -= parcel->size;
    }
    ferry_unlock();
    if (!parcel) return -1;
    size_t size = parcel->size < capacity ? parcel->size : capacity;
    memcpy(frame, parcel->bytes, size);
    free(parcel);
    return (ssize_t)size;
}

void ferry_rest(bool rest) {
    if (!started) return;
    ferry_lock();
    resting = rest;
    ferry_unlock();
    ring(to_ferry);
}

void ferry_reset(void) {
    resting = false;
    attach_since = 0;
}

static void note(struct source *source) { (void)source; }

int ferry_start(void) {
    pthread_attr_t attributes;
    pthread_t thread;
    if (started) return 0;
    to_ferry = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    to_loop = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    news = (struct source){.fd = to_loop, .wake = note};
    if (to_ferry < 0 || to_loop < 0 || source_add(&news, EPOLLIN)) return EMFILE;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    int error = pthread_create(&thread, &attributes, ferry, NULL);
    started = !error;
    if (started) link_rearm();
    return error;
}
