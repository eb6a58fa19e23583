// wardian-tsc: prints how many kilohertz the processor's time stamp counter runs at, or fails where there is no steady one.
// An emulated machine counts with the host's counter and has nothing to measure it against.
#define _GNU_SOURCE
#include <cpuid.h>
#include <stdint.h>
#include <stdio.h>
#include <time.h>
#include <x86intrin.h>

enum { MEASURE_NS = 50000000, NS = 1000000000, LOOKS = 1000 };

struct look { uint64_t ns, ticks, doubt; };

// Both clocks at one instant, as nearly as can be had: whoever is interrupted between them looks again.
static struct look look(void)
{
    struct look best = { .doubt = UINT64_MAX };
    for (int i = 0; i < LOOKS; i++) {
        struct timespec time;
        uint64_t before = __rdtsc();
        clock_gettime(CLOCK_MONOTONIC_RAW, &time);  // which nobody sets right meanwhile
        uint64_t doubt = __rdtsc() - before;
        if (doubt < best.doubt)
            best = (struct look){ (uint64_t)time.tv_sec * NS + (uint64_t)time.tv_nsec, before + doubt / 2, doubt };
    }
    return best;
}

int main(void)
{
    unsigned a, b, c, d;
    if (!__get_cpuid(0x80000007, &a, &b, &c, &d) || !(d & 1 << 8)) return 1;
    struct look begin = look(), end;
    do end = look();
    while (end.ns - begin.ns < MEASURE_NS);
    printf("%llu\n", (unsigned long long)((end.ticks - begin.ticks) * 1000000 / (end.ns - begin.ns)));
    return 0;
}
