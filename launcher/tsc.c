// wardian-tsc: prints how many kilohertz the processor's time stamp counter runs at, or fails where there is no steady one.
// An emulated machine counts with the host's counter and has nothing to measure it against.
#define _GNU_SOURCE
#include <cpuid.h>
#include <stdint.h>
#include <stdio.h>
#include <time.h>
#include <x86intrin.h>

enum { MEASURE_NS = 50000000, NS = 1000000000 };

static uint64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * NS + (uint64_t)time.tv_nsec;
}

int main(void)
{
    unsigned a, b, c, d;
    if (!__get_cpuid(0x80000007, &a, &b, &c, &d) || !(d & 1 << 8)) return 1;
    uint64_t begin = now(), first = __rdtsc(), end, last;
    do end = now(), last = __rdtsc();
    while (end - begin < MEASURE_NS);
    printf("%llu\n", (unsigned long long)((last - first) * 1000000 / (end - begin)));
    return 0;
}
