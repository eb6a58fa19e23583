/* Packets over a byte stream: what joins a packet socket and a virtio-serial port, at both ends of it. */
#pragma once
#include <poll.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    RELAY_PACKET_MAX = 8 + 65536, /* a frame of the guest protocol */
    RELAY_BUFFER = 2 * (RELAY_PACKET_MAX + 4),
    RELAY_PADDING = 64, /* more than what can be missing of the only frames that are sent while a machine is captured */
};

struct relay_flow {
    uint8_t bytes[RELAY_BUFFER];
    size_t start, end;
};

struct relay {
    int packets, stream; /* both non-blocking */
    void (*on_clock)(uint64_t realtime_ns); /* NULL: the other side has nothing to say about time */
    struct relay_flow out, in; /* packets to stream, stream to packets */
};

/* Begin with zeros: they complete what a captured machine had received of a frame, and mean nothing between frames. */
void relay_pad(struct relay *relay);
/* Tell the other side what time it is; between packets. */
void relay_tell_time(struct relay *relay);
/* What to wait for; both descriptors, in the order packets, stream. */
void relay_waits(const struct relay *relay, struct pollfd waits[2]);
/* Carry what can be carried. False: the stream makes no sense, or one of the two is closed. */
bool relay_step(struct relay *relay);
