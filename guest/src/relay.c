/* Each packet becomes a mark, its size in three bytes (little-endian), and its bytes. Zeros between packets mean nothing.
   Another mark and eight bytes are the host's clock, for a guest that has stood still: nanoseconds since 1970.
   Anything else is the end: the other side is another program, or hostile. */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "relay.h"

enum { MARK = 0xA5, CLOCK = 0x5A, PREFIX = 4, CLOCK_SIZE = 9, ROUNDS = 64 };

void relay_pad(struct relay *relay) {
    memset(relay->out.bytes, 0, RELAY_PADDING);
    relay->out.end = RELAY_PADDING;
}

void relay_tell_time(struct relay *relay) {
    struct relay_flow *flow = &relay->out;
    struct timespec now;
    if (flow->start) memmove(flow->bytes, flow->bytes + flow->start, flow->end - flow->start);
    flow->end -= flow->start;
    flow->start = 0;
    if (flow->end + CLOCK_SIZE > RELAY_BUFFER) return; /* the guest takes nothing: it has other troubles */
    clock_gettime(CLOCK_REALTIME, &now);
    uint64_t realtime = (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
    flow->bytes[flow->end] = CLOCK;
    memcpy(flow->bytes + flow->end + 1, &realtime, sizeof realtime);
    flow->end += CLOCK_SIZE;
}

static size_t held(const struct relay_flow *flow) { return flow->end - flow->start; }

static bool has_room(const struct relay_flow *flow) { return held(flow) <= RELAY_BUFFER - PREFIX - RELAY_PACKET_MAX; }

/* Move what is held to the front, so that the room is in one piece. */
static size_t make_room(struct relay_flow *flow) {
    if (flow->start) memmove(flow->bytes, flow->bytes + flow->start, held(flow));
    flow->end -= flow->start;
    flow->start = 0;
    return RELAY_BUFFER - flow->end;
}

/* 1: done something; 0: not now; -1: closed or broken. */
static int outcome(ssize_t done) {
    if (done > 0) return 1;
    return done < 0 && (errno == EAGAIN || errno == EINTR) ? 0 : -1;
}

static int take_packet(struct relay *relay) {
    struct relay_flow *flow = &relay->out;
    if (!has_room(flow)) return 0;
    make_room(flow);
    uint8_t *at = flow->bytes + flow->end;
    struct iovec part = {at + PREFIX, RELAY_PACKET_MAX};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    ssize_t size = recvmsg(relay->packets, &message, MSG_DONTWAIT);
    if (size <= 0 || message.msg_flags & MSG_TRUNC) return size > 0 ? -1 : outcome(size);
    at[0] = MARK;
    for (int i = 0; i < 3; i++) at[1 + i] = (uint8_t)(size >> (8 * i));
    flow->end += PREFIX + (size_t)size;
    return 1;
}

static int put_stream(struct relay *relay) {
    struct relay_flow *flow = &relay->out;
    if (!held(flow)) return 0;
    ssize_t put = write(relay->stream, flow->bytes + flow->start, held(flow));
    if (put > 0) flow->start += (size_t)put;
    return outcome(put);
}

static int take_stream(struct relay *relay) {
    struct relay_flow *flow = &relay->in;
    if (!has_room(flow)) return 0;
    size_t room = make_room(flow);
    ssize_t got = read(relay->stream, flow->bytes + flow->end, room);
    if (got > 0) flow->end += (size_t)got;
    return outcome(got);
}

/* As put_packet. */
static int take_time(struct relay *relay) {
    struct relay_flow *flow = &relay->in;
    uint64_t realtime;
    if (!relay->on_clock) return -1;
    if (held(flow) < CLOCK_SIZE) return 0;
    memcpy(&realtime, flow->bytes + flow->start + 1, sizeof realtime);
    flow->start += CLOCK_SIZE;
    relay->on_clock(realtime);
    return 1;
}

static int put_packet(struct relay *relay) {
    struct relay_flow *flow = &relay->in;
    while (held(flow) && !flow->bytes[flow->start]) flow->start++;
    const uint8_t *at = flow->bytes + flow->start;
    if (!held(flow)) return 0;
    if (at[0] == CLOCK) return take_time(relay);
    if (at[0] != MARK) return -1;
    if (held(flow) < PREFIX) return 0;
    size_t size = at[1] | (size_t)at[2] << 8 | (size_t)at[3] << 16;
    if (!size || size > RELAY_PACKET_MAX) return -1;
    if (held(flow) < PREFIX + size) return 0;
    ssize_t put = send(relay->packets, at + PREFIX, size, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (put == (ssize_t)size) flow->start += PREFIX + size;
    return outcome(put);
}

static bool has_packet(const struct relay_flow *flow) {
    if (held(flow) < PREFIX || flow->bytes[flow->start] != MARK) return false;
    const uint8_t *at = flow->bytes + flow->start;
    return held(flow) >= PREFIX + (at[1] | (size_t)at[2] << 8 | (size_t)at[3] << 16);
}

void relay_waits(const struct relay *relay, struct pollfd waits[2]) {
    waits[0] = (struct pollfd){relay->packets, (short)((has_room(&relay->out) ? POLLIN : 0) | (has_packet(&relay->in) ? POLLOUT : 0)), 0};
    waits[1] = (struct pollfd){relay->stream, (short)((has_room(&relay->in) ? POLLIN : 0) | (held(&relay->out) ? POLLOUT : 0)), 0};
}

bool relay_step(struct relay *relay) {
    int (*const steps[])(struct relay *) = {take_packet, put_stream, take_stream, put_packet};
    bool moved = true;
    for (int round = 0; moved && round < ROUNDS; round++) {
        moved = false;
        for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
            int done = steps[i](relay);
            if (done < 0) return false;
            moved |= done > 0;
        }
    }
    return true;
}
