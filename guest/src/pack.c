/* PACK's helper: walk the root file system in order and tell what is in it, with the content of what is not the image's. */
#include "carry.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "agent.h"

enum { NAMES_MAX = 64 << 20, FLUSH_FROM = 48 << 10, LOOK_EVERY = 16 << 20 };

static uint8_t bytes[CARRIED_MAX + FLUSH_FROM];
static struct out out = {.bytes = bytes, .capacity = sizeof bytes};
static char path[PATH_MAX]; /* of what is being told, relative to the root */
static dev_t root_device, changed_device;

static void flush(void) {
    carry_write(out.bytes, out.size);
    out.size = 0;
}

/* A record is complete. */
static void finish(void) {
    if (out.over) carry_fail(E2BIG, path);
    if (out.size >= FLUSH_FROM) flush();
}

/* ---- hard links: the first name has the content, the others say so ---- */

struct known {
    dev_t device;
    ino_t inode;
    char *path;
};
static struct known *links;
static size_t link_count, link_capacity; /* a power of two; at most half full */

static struct known *link_slot(dev_t device, ino_t inode) {
    size_t at = (size_t)((device * 31 + inode) * 0x9E3779B97F4A7C15ULL >> 20);
    while (links[at &= link_capacity - 1].path && (links[at].device != device || links[at].inode != inode)) at++;
    return &links[at];
}

static void grow_links(void) {
    struct known *old = links;
    size_t count = link_capacity;
    link_capacity = count ? 2 * count : 1024;
    links = calloc(link_capacity, sizeof *links);
    if (!links) carry_fail(ENOMEM, path);
    for (size_t i = 0; i < count; i++)
        if (old[i].path) *link_slot(old[i].device, old[i].inode) = old[i];
    free(old);
}

/* The first name of this inode, or NULL when this is the first. */
static const char *first_name(const struct stat *info) {
    if (info->st_nlink < 2 || S_ISDIR(info->st_mode)) return NULL;
    if (2 * link_count >= link_capacity) grow_links();
    struct known *known = link_slot(info->st_dev, info->st_ino);
    if (known->path) return known->path;
    *known = (struct known){info->st_dev, info->st_ino, strdup(path)};
    if (!known->path) carry_fail(ENOMEM, path);
    link_count++;
    return NULL;
}

/* ---- one entry ---- */

static void put_xattrs(int fd) {
    static char names[XATTRS_MAX], pair[XATTRS_MAX + 256];
    ssize_t size = flistxattr(fd, names, sizeof names);
    if (size < 0 && (errno == ENOTSUP || errno == ENODATA)) return;
    if (size < 0) carry_fail(errno, path);
    size_t total = 0;
    for (const char *name = names; name < names + size; name += strlen(name) + 1) {
        size_t length = strlen(name) + 1;
        if (strncmp(name, "user.", 5) || length > 256) continue;
        memcpy(pair, name, length);
        ssize_t got = fgetxattr(fd, name, pair + length, sizeof pair - length);
        if (got < 0 && errno == ENODATA) continue;
        if (got < 0 || (total += length + (size_t)got) > XATTRS_MAX) carry_fail(got < 0 ? errno : E2BIG, path);
        put_bytes(&out, ENTRY_XATTR, pair, length + (size_t)got);
    }
}

/* `fd`: of a directory or file, for its attributes; -1 without. */
static void put_entry(const struct stat *info, int fd, const char *target, const char *link) {
    size_t mark = nest_begin(&out, RECORD_ENTRY);
    put_text(&out, ENTRY_PATH, path);
    put_uint(&out, ENTRY_MODE, 4, info->st_mode);
    put_uint(&out, ENTRY_UID, 4, info->st_uid);
    put_uint(&out, ENTRY_GID, 4, info->st_gid);
    put_uint(&out, ENTRY_MTIME, 8, (uint64_t)((int64_t)info->st_mtim.tv_sec * 1000000000 + info->st_mtim.tv_nsec));
    if (S_ISREG(info->st_mode)) put_uint(&out, ENTRY_SIZE, 8, link ? 0 : (uint64_t)info->st_size);
    if (target) put_text(&out, ENTRY_TARGET, target);
    if (link) put_text(&out, ENTRY_LINK, link);
    if (S_ISCHR(info->st_mode) || S_ISBLK(info->st_mode)) {
        put_uint(&out, ENTRY_MAJOR, 4, major(info->st_rdev));
        put_uint(&out, ENTRY_MINOR, 4, minor(info->st_rdev));
    }
    if (fd >= 0 && !link) put_xattrs(fd);
    nest_end(&out, mark);
    finish();
}

static bool all_zero(const uint8_t *at, size_t size) { return !*at && !memcmp(at, at + 1, size - 1); }

/* Somebody still reads what we write. */
static void look(void) {
    struct pollfd host = {1, 0, 0};
    if (poll(&host, 1, 0) > 0 && host.revents & (POLLERR | POLLHUP)) _exit(1);
}

/* What is not told is zeros: holes, and what a file that shrinks meanwhile has lost. */
static void put_content(int fd, uint64_t size) {
    static uint8_t chunk[5 + 8 + CHUNK];
    uint64_t at = 0, looked = 0;
    flush();
    while (at < size) {
        off_t data = lseek(fd, (off_t)at, SEEK_DATA);
        if (data < 0 && errno == ENXIO) return;
        if (data > (off_t)at) at = (uint64_t)data;
        size_t room = size - at < CHUNK ? (size_t)(size - at) : CHUNK;
        ssize_t got = at < size ? pread(fd, chunk + 13, room, (off_t)at) : 0;
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) carry_fail(errno, path);
        if (got == 0) return;
        if (!all_zero(chunk + 13, (size_t)got)) {
            struct out head = {.bytes = chunk, .capacity = 13};
            put_raw(&head, 1, RECORD_CONTENT);
            put_raw(&head, 4, (uint64_t)got + 8);
            put_raw(&head, 8, at);
            carry_write(chunk, 13 + (size_t)got);
        }
        at += (uint64_t)got;
        if (at - looked >= LOOK_EVERY) {
            look();
            looked = at;
        }
    }
}

static void tell_file(int parent, const char *name) {
    struct stat info;
    int fd = openat(parent, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (fd < 0 && (errno == ENOENT || errno == ELOOP || errno == ENXIO)) return; /* another thing meanwhile */
    if (fd < 0 || fstat(fd, &info)) carry_fail(errno, path);
    if (S_ISREG(info.st_mode)) {
        const char *link = first_name(&info);
        put_entry(&info, fd, NULL, link);
        if (!link) put_content(fd, (uint64_t)info.st_size);
    }
    close(fd);
}

static void tell_symlink(int parent, const char *name, const struct stat *info) {
    char target[PATH_MAX];
    ssize_t size = readlinkat(parent, name, target, sizeof target - 1);
    if (size < 0 && (errno == ENOENT || errno == EINVAL)) return;
    if (size < 0) carry_fail(errno, path);
    target[size] = 0;
    put_entry(info, -1, target, first_name(info));
}

/* ---- directories ---- */

struct names {
    char *text;
    size_t size, capacity, count;
    const char **sorted;
};

static int by_bytes(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

static struct names read_names(int fd) {
    struct names names = {0};
    DIR *dir = fdopendir(dup(fd));
    if (!dir) carry_fail(errno, path);
    for (;;) {
        errno = 0;
        struct dirent *entry = readdir(dir);
        if (!entry && errno) carry_fail(errno, path);
        if (!entry) break;
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
        size_t size = strlen(entry->d_name) + 1;
        if (names.size + size > names.capacity) {
            names.capacity = 2 * names.capacity + 4096;
            names.text = names.capacity > NAMES_MAX ? NULL : realloc(names.text, names.capacity);
            if (!names.text) carry_fail(names.capacity > NAMES_MAX ? EFBIG : ENOMEM, path);
        }
        memcpy(names.text + names.size, entry->d_name, size);
        names.size += size;
        names.count++;
    }
    closedir(dir);
    names.sorted = malloc((names.count + 1) * sizeof *names.sorted);
    if (!names.sorted) carry_fail(ENOMEM, path);
    const char *at = names.text;
    for (size_t i = 0; i < names.count; i++, at += strlen(at) + 1) names.sorted[i] = at;
    qsort(names.sorted, names.count, sizeof *names.sorted, by_bytes);
    return names;
}

/* Directories that belong to the running machine, not to the files. */
static bool transient(void) {
    static const char *const names[] = {"dev", "proc", "run", "sys"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (!strcmp(path, names[i])) return true;
    return false;
}

static void walk(int fd, size_t length);

static void tell_directory(int parent, const char *name, size_t length) {
    struct stat info;
    int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0 && (errno == ENOENT || errno == ENOTDIR || errno == ELOOP)) return;
    if (fd < 0 || fstat(fd, &info)) carry_fail(errno, path);
    if (info.st_dev != root_device || transient()) {
        put_text(&out, RECORD_MOUNT, path);
        finish();
    } else {
        put_entry(&info, fd, NULL, NULL);
        walk(fd, length);
    }
    close(fd);
}

/* Linux lets a changed file of the image go on with the device number that it had; so there we look where changes are kept. */
static bool is_changed(const struct stat *info) {
    return info->st_dev == changed_device
           || (settings.upper >= 0 && !faccessat(settings.upper, path, F_OK, AT_SYMLINK_NOFOLLOW));
}

static void tell(int parent, const char *name, size_t length) {
    struct stat info;
    if (fstatat(parent, name, &info, AT_SYMLINK_NOFOLLOW)) {
        if (errno != ENOENT) carry_fail(errno, path);
        return;
    }
    if (S_ISDIR(info.st_mode)) {
        tell_directory(parent, name, length);
    } else if (!is_changed(&info)) {
        put_text(&out, RECORD_SAME, path);
        finish();
    } else if (S_ISREG(info.st_mode)) {
        tell_file(parent, name);
    } else if (S_ISLNK(info.st_mode)) {
        tell_symlink(parent, name, &info);
    } else if (!S_ISSOCK(info.st_mode)) { /* a socket is nothing without its process */
        put_entry(&info, -1, NULL, first_name(&info));
    }
}

/* Everything below the directory `fd`, whose path is the first `length` bytes of `path`. */
static void walk(int fd, size_t length) {
    struct names names = read_names(fd);
    for (size_t i = 0; i < names.count; i++) {
        int size = snprintf(path + length, sizeof path - length, "%s%s", length ? "/" : "", names.sorted[i]);
        if ((size_t)size >= sizeof path - length) carry_fail(ENAMETOOLONG, path);
        tell(fd, names.sorted[i], length + (size_t)size);
        path[length] = 0;
    }
    free(names.sorted);
    free(names.text);
}

/* The device of what is written here: files of the image below have another. The root's own time stays as it was. */
static dev_t device_of_changes(int root) {
    static const char probe[] = ".wardian-pack";
    struct stat before, info;
    int fd = fstat(root, &before) ? -1 : openat(root, probe, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0 || fstat(fd, &info)) carry_fail(errno, probe);
    close(fd);
    unlinkat(root, probe, 0);
    futimens(root, (struct timespec[]){{.tv_nsec = UTIME_OMIT}, before.st_mtim});
    return info.st_dev;
}

void pack_files(void) {
    struct stat info;
    int root = open(rooted("/"), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (root < 0 || fstat(root, &info)) carry_fail(errno, NULL);
    root_device = info.st_dev;
    changed_device = device_of_changes(root);
    put_entry(&info, root, NULL, NULL);
    walk(root, 0);
    flush();
    carry_done();
}
