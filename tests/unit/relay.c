/* The relay alone: packets on descriptor 3, the stream on descriptor 4, until one of them ends. `clock` lets time be told. */
#include <stdio.h>
#include <string.h>

#include "../../guest/src/relay.h"

static struct relay relay = {.packets = 3, .stream = 4};

static void told(uint64_t realtime_ns) {
    printf("%llu\n", (unsigned long long)realtime_ns);
    fflush(stdout);
}

int main(int argc, char **argv) {
    struct pollfd waits[2];
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "clock")) relay.on_clock = told;
        if (!strcmp(argv[i], "pad")) relay_pad(&relay);
        if (!strcmp(argv[i], "tell")) relay_tell_time(&relay);
    }
    do {
        relay_waits(&relay, waits);
        poll(waits, 2, -1);
    } while (relay_step(&relay));
    return 0;
}
