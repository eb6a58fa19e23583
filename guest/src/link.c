/* The link: one packet is one frame. Frames wait in one buffer and leave in batches at the end of each turn. */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "agent.h"

enum {
    FRAME_MAX = HEADER + PAYLOAD_MAX,
    BATCH = 4,
    SLOT = (FRAME_MAX + 2 + 15) / 16 * 16, /* one byte to see that a packet is too long, one to end a text with */
    FULL = 256 << 10,                      /* above this no source is read */
    CHOKED = 512 << 10,                    /* above this not even the link is read */
    CAPACITY = 768 << 10,
};

static _Alignas(4096) uint8_t outgoing[CAPACITY]; /* u32 size, frame; again and again */
static size_t out_start, out_end, out_open;       /* out_open: where the frame being written begins */
static _Alignas(4096) uint8_t incoming[BATCH][SLOT];
static struct source link_source;

static void link_wake(struct source *source) { (void)source; }

void link_start(void) {
    int size = 1 << 20; /* best effort: fewer wake-ups per megabyte */
    setsockopt(settings.link, SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
    link_source = (struct source){.fd = settings.link, .wake = link_wake};
    int error = source_add(&link_source, ferry_runs() ? 0 : EPOLLIN | EPOLLRDHUP);
    if (error) {
        say("cannot watch the link: %s", strerror(error));
        exit(1);
    }
    link_source.readable = link_source.writable = true;
}

void link_rearm(void) {
    epoll_ctl(epoll_fd, EPOLL_CTL_DEL, settings.link, NULL);
    link_start();
}

bool link_full(void) { return out_end - out_start > FULL; }

static void append(const void *bytes, size_t size) {
    memcpy(outgoing + out_end, bytes, size);
    out_end += size;
}

uint8_t *link_begin(uint8_t type, uint8_t flags, uint32_t id, size_t room) {
    size_t need = 4 + HEADER + room;
    if (CAPACITY - out_end < need && out_start) {
        memmove(outgoing, outgoing + out_start, out_end - out_start);
        out_end -= out_start;
        out_start = 0;
    }
    if (CAPACITY - out_end < need) link_flush_all(); /* the reserve above FULL is used up: rather wait than lose */
    out_open = out_end;
    uint8_t header[4 + HEADER] = {0, 0, 0, 0, type, flags};
    memcpy(header + 8, &id, 4);
    append(header, sizeof header);
    return outgoing + out_end;
}

void link_commit(size_t size) {
    uint32_t frame = HEADER + (uint32_t)size;
    memcpy(outgoing + out_open, &frame, 4);
    out_end += size;
}

void link_put(uint8_t type, uint8_t flags, uint32_t id, const void *payload, size_t size) {
    uint8_t *at = link_begin(type, flags, id, size);
    if (size) memcpy(at, payload, size);
    link_commit(size);
}

struct out link_fields(uint8_t type, uint8_t flags, uint32_t id) {
    return (struct out){.bytes = link_begin(type, flags, id, PAYLOAD_MAX), .capacity = PAYLOAD_MAX};
}

void link_send(const struct out *out) {
    if (out->bytes) link_commit(out->size);
    else out_end = out_open; /* taken back */
}

void link_lost(void) {
    say("the link is closed");
    exit(0);
}

bool link_flush(void) {
    while (out_start < out_end && link_source.writable) {
        struct mmsghdr messages[16];
        struct iovec parts[16];
        unsigned count = 0;
        for (size_t at = out_start; at < out_end && count < 16; count++) {
            uint32_t size;
            memcpy(&size, outgoing + at, 4);
            parts[count] = (struct iovec){outgoing + at + 4, size};
            messages[count] = (struct mmsghdr){.msg_hdr = {.msg_iov = &parts[count], .msg_iovlen = 1}};
            at += 4 + size;
        }
        int sent = count == 1 ? (send(settings.link, parts[0].iov_base, parts[0].iov_len, MSG_DONTWAIT | MSG_NOSIGNAL) < 0 ? -1 : 1)
                              : sendmmsg(settings.link, messages, count, MSG_DONTWAIT | MSG_NOSIGNAL);
        for (int i = 0; i < sent; i++) out_start += 4 + parts[i].iov_len;
        if (sent < 0) {
            if (errno == EPIPE || errno == ECONNRESET || errno == ENOTCONN) link_lost();
            if (errno != EINTR) source_await_writable(&link_source);
        }
    }
    if (out_start < out_end) return false;
    out_start = out_end = 0;
    return true;
}

void link_flush_all(void) {
    while (!link_flush()) {
        struct pollfd wait = {settings.link, POLLOUT, 0};
        poll(&wait, 1, -1);
        link_source.writable = true;
    }
}

void link_drop(void) { out_start = out_end = 0; }

void link_trim(void) {
    madvise(outgoing, sizeof outgoing, MADV_DONTNEED);
    madvise(incoming, sizeof incoming, MADV_DONTNEED);
}

static void handle(uint8_t *frame, size_t size, bool truncated) {
    if (size < HEADER || truncated) {
        uint32_t id = 0;
        if (size >= HEADER) memcpy(&id, frame + 4, 4);
        if (id) link_put(CLOSE, 0, id, NULL, 0);
        return;
    }
    uint32_t id;
    memcpy(&id, frame + 4, 4);
    if (frame[2] || frame[3]) {
        if (id) link_put(CLOSE, 0, id, NULL, 0);
        return;
    }
    stream_frame(frame[0], frame[1], id, frame + HEADER, size - HEADER);
}

static void check_alive(void) {
    struct pollfd now = {settings.link, POLLIN | POLLRDHUP, 0};
    if (poll(&now, 1, 0) > 0 && now.revents & (POLLRDHUP | POLLHUP)) link_lost();
}

void link_note_readable(void) { link_source.readable = true; }

bool link_readable(void) {
    return (ferry_runs() ? ferry_waiting() : link_source.readable) && out_end - out_start <= CHOKED;
}

/* One frame that the ferry brought. */
static bool take_parcel(void) {
    ssize_t size = ferry_take(incoming[0], FRAME_MAX + 1);
    if (size < 0) link_lost();
    handle(incoming[0], (size_t)size, size > FRAME_MAX);
    return true;
}

bool link_receive(void) {
    if (!link_readable()) return false;
    if (ferry_runs()) return take_parcel();
    struct mmsghdr messages[BATCH];
    struct iovec parts[BATCH];
    for (int i = 0; i < BATCH; i++) {
        parts[i] = (struct iovec){incoming[i], FRAME_MAX + 1};
        messages[i] = (struct mmsghdr){.msg_hdr = {.msg_iov = &parts[i], .msg_iovlen = 1}};
    }
    int count = recvmmsg(settings.link, messages, BATCH, MSG_DONTWAIT, NULL);
    if (count < 0) {
        if (errno == EAGAIN) link_source.readable = false;
        else if (errno != EINTR) link_lost();
        return false;
    }
    if (count < BATCH) link_source.readable = false;
    for (int i = 0; i < count; i++) {
        size_t size = messages[i].msg_len;
        if (size == 0) check_alive(); /* an empty packet and the end look alike */
        handle(incoming[i], size, size > FRAME_MAX || messages[i].msg_hdr.msg_flags & MSG_TRUNC);
    }
    return link_source.readable;
}
