/* A machine whose link is a byte stream (a virtio-serial port, or whoever connects to a vsock): a thread of ours makes
   packets of it, so that nothing else here needs to know. A thread, because no process inside may stop or kill it. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "agent.h"
#include "relay.h"

static struct relay relay;

static void set_clock(uint64_t realtime_ns) {
    struct timespec time = {(time_t)(realtime_ns / 1000000000), (long)(realtime_ns % 1000000000)};
    if (clock_settime(CLOCK_REALTIME, &time)) say("the clock cannot be set: %s", strerror(errno));
}

/* The stream is no more, as after every capture. Who connects next is the host, and begins with a whole frame. */
static bool renewed(void) {
    if (settings.listener < 0) return false;
    if (relay.stream >= 0) close(relay.stream);
    relay.out.start = relay.out.end = relay.in.start = relay.in.end = 0;
    do relay.stream = accept4(settings.listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    while (relay.stream < 0 && (errno == EINTR || errno == ECONNABORTED));
    return relay.stream >= 0;
}

static void *carry_on(void *unused) {
    struct pollfd waits[2];
    (void)unused;
    if (relay.stream < 0 && !renewed()) link_lost();
    do {
        do {
            relay_waits(&relay, waits);
            poll(waits, 2, -1);
        } while (relay_step(&relay));
    } while (renewed());
    link_lost();
}

void port_start(void) {
    int ends[2], size = 1 << 20;
    pthread_t thread;
    sigset_t all, before;
    int error = socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) ? errno : 0;
    if (!error) {
        setsockopt(ends[0], SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof size);
        relay = (struct relay){.packets = ends[0], .stream = settings.stream, .on_clock = set_clock};
        settings.link = ends[1];
        fcntl(settings.listener, F_SETFD, FD_CLOEXEC);
        fcntl(settings.stream, F_SETFD, FD_CLOEXEC);
        fcntl(settings.stream, F_SETFL, O_NONBLOCK | O_RDWR);
        sigfillset(&all); /* signals are the loop's */
        pthread_sigmask(SIG_SETMASK, &all, &before);
        error = pthread_create(&thread, NULL, carry_on, NULL);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
    }
    if (!error) return;
    say("no link: %s", strerror(error));
    exit(1);
}
