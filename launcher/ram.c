// wardian-ram PID ADDRESS SIZE: writes the private mapping of a stopped process to standard output, a new and empty file.
// Pages of nothing but zeros, and pages that were never touched, become holes. Pages of a file that the mapping was made
// from, and that the process has not changed, are copied from that file, which a file system may do without copying.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PAGE = 4096, CHUNK = 512, OUT = 1 };
static const uint64_t PRESENT = 1ULL << 63, SWAPPED = 1ULL << 62, OF_A_FILE = 1ULL << 61;

static int memory = -1, map = -1, base = -1;
static uint64_t start;

static void need(int ok, const char *what)
{
    if (ok) return;
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(1);
}

static int open_of(const char *pid, const char *name)
{
    char path[256];
    snprintf(path, sizeof path, "/proc/%s/%s", pid, name);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    need(fd >= 0, path);
    return fd;
}

// The file that the mapping was made from, though it may have no name any more; -1 if there is none.
static void find_base(const char *pid)
{
    char path[256], line[8192], link[128];
    uint64_t begin, end, inode;
    snprintf(path, sizeof path, "/proc/%s/maps", pid);
    FILE *maps = fopen(path, "re");
    need(maps != NULL, path);
    while (fgets(line, sizeof line, maps)) {
        if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %*s %*s %*s %" SCNu64, &begin, &end, &inode) != 3 || begin != start) continue;
        snprintf(link, sizeof link, "map_files/%" PRIx64 "-%" PRIx64, begin, end);
        if (inode) base = open_of(pid, link);
    }
    fclose(maps);
}

static void copy_from_base(off_t at, off_t end)
{
    while (base >= 0 && at < end) {
        off_t data = lseek(base, at, SEEK_DATA);
        if (data < 0 && errno == ENXIO) return;
        need(data >= 0, "seek");
        if (data >= end) return;
        off_t hole = lseek(base, data, SEEK_HOLE);
        need(hole >= 0, "seek");
        if (hole > end) hole = end;
        for (off_t from = data, to = data; from < hole;)
            need(copy_file_range(base, &from, OUT, &to, (size_t)(hole - from), 0) > 0, "copy");
        at = hole;
    }
}

static int is_zero(const uint8_t *page)
{
    return !page[0] && !memcmp(page, page + 1, PAGE - 1);
}

static void put(const uint8_t *bytes, size_t size, off_t at)
{
    for (size_t done = 0; done < size;) {
        ssize_t n = pwrite(OUT, bytes + done, size - done, at + (off_t)done);
        need(n > 0, "write");
        done += (size_t)n;
    }
}

static void copy_from_memory(off_t at, off_t end)
{
    static uint8_t bytes[CHUNK * PAGE];
    size_t size = (size_t)(end - at), from = 0;
    need(pread(memory, bytes, size, (off_t)start + at) == (ssize_t)size, "read memory");
    for (size_t page = 0; page <= size; page += PAGE) {
        if (page < size && !is_zero(bytes + page)) continue;
        if (page > from) put(bytes + from, page - from, at + (off_t)from);
        from = page + PAGE;
    }
}

static int is_changed(uint64_t entry)
{
    return (entry & (PRESENT | SWAPPED)) && !(entry & OF_A_FILE);
}

int main(int argc, char **argv)
{
    if (argc != 4) return 2;
    start = strtoull(argv[2], NULL, 0);
    off_t size = (off_t)strtoull(argv[3], NULL, 0);
    memory = open_of(argv[1], "mem");
    map = open_of(argv[1], "pagemap");
    find_base(argv[1]);
    need(!ftruncate(OUT, size), "size");
    for (off_t chunk = 0; chunk < size; chunk += CHUNK * PAGE) {
        uint64_t entries[CHUNK];
        off_t pages = (size - chunk) / PAGE < CHUNK ? (size - chunk) / PAGE : CHUNK;
        ssize_t bytes = (ssize_t)(pages * 8);
        need(pread(map, entries, (size_t)bytes, (off_t)(start + (uint64_t)chunk) / PAGE * 8) == bytes, "pagemap");
        for (off_t first = 0, next; first < pages; first = next) {
            int changed = is_changed(entries[first]);
            for (next = first + 1; next < pages && is_changed(entries[next]) == changed;) next++;
            if (changed) copy_from_memory(chunk + first * PAGE, chunk + next * PAGE);
            else copy_from_base(chunk + first * PAGE, chunk + next * PAGE);
        }
    }
    return 0;
}
