/* UNPACK's helper: make what the host tells, in the order it is told. Nothing is followed: every path is walked name by name. */
#include "carry.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "agent.h"

static int root;

/* ---- where a path leads ---- */

static int parent_fd = -1; /* of the last path; many have the same */
static char parent_path[PATH_MAX];

/* Relative, clean, and short enough: a name by itself is never more than the file system takes. */
static bool proper(const char *path) {
    if (!*path || strlen(path) >= PATH_MAX) return false;
    for (const char *at = path;; at++) {
        size_t size = strcspn(at, "/");
        if (!size || size > NAME_MAX || (at[0] == '.' && (size == 1 || (size == 2 && at[1] == '.')))) return false;
        at += size;
        if (!*at) return true;
    }
}

/* The directory that holds it, open; `name` is the rest. Ends the process when there is no such directory. */
static int parent_of(char *path, const char **name) {
    char *slash = strrchr(path, '/');
    size_t size = slash ? (size_t)(slash - path) : 0;
    *name = slash ? slash + 1 : path;
    if (!slash) return root;
    if (parent_fd >= 0 && strlen(parent_path) == size && !memcmp(parent_path, path, size)) return parent_fd;
    int fd = dup(root);
    for (size_t at = 0; at < size;) {
        char part[NAME_MAX + 1];
        size_t length = strcspn(path + at, "/");
        snprintf(part, sizeof part, "%.*s", (int)length, path + at);
        int next = openat(fd, part, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (next < 0) carry_fail(errno, path);
        close(fd);
        fd = next;
        at += length + 1;
    }
    if (parent_fd >= 0) close(parent_fd);
    parent_fd = fd;
    snprintf(parent_path, sizeof parent_path, "%.*s", (int)size, path);
    return fd;
}

static void forget_parent(void) {
    if (parent_fd >= 0) close(parent_fd);
    parent_fd = -1;
}

/* ---- making room ---- */

/* errno. A tree is taken down from its leaves, a descriptor for each level. */
static int remove_tree(int parent, const char *name) {
    if (unlinkat(parent, name, 0) == 0 || errno == ENOENT) return 0;
    if (errno != EISDIR) return errno;
    int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC), error = 0;
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    if (!dir) return errno;
    for (bool again = true; again && !error;) {
        again = false;
        rewinddir(dir);
        for (struct dirent *entry; !error && (entry = readdir(dir));) {
            if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
            error = remove_tree(fd, entry->d_name);
            again = true;
        }
    }
    closedir(dir);
    if (!error && unlinkat(parent, name, AT_REMOVEDIR)) error = errno;
    return error;
}

static void clear(int parent, const char *name, const char *path) {
    int error = remove_tree(parent, name);
    forget_parent(); /* it may have been in there */
    if (error) carry_fail(error, path);
}

/* ---- the file that is being written ---- */

struct attributes {
    mode_t mode;
    uid_t uid;
    gid_t gid;
    int64_t mtime;
};
static int file_fd = -1;
static char file_path[PATH_MAX];
static uint64_t file_size;
static struct attributes file_attributes;

static struct timespec time_of(int64_t ns) {
    int64_t seconds = ns / 1000000000 - (ns % 1000000000 < 0);
    return (struct timespec){seconds, (long)(ns - seconds * 1000000000)};
}

static void finish_file(void) {
    if (file_fd < 0) return;
    struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, time_of(file_attributes.mtime)};
    if (fchown(file_fd, file_attributes.uid, file_attributes.gid) || fchmod(file_fd, file_attributes.mode & 07777) || futimens(file_fd, times))
        carry_fail(errno, file_path);
    close(file_fd);
    file_fd = -1;
}

static void put_xattrs(int fd, struct request *entry, const char *path) {
    enum { MOST = 1024 };
    static struct field fields[MOST];
    size_t count = request_all(entry, ENTRY_XATTR, fields, MOST);
    if (count > MOST) carry_fail(E2BIG, path);
    for (size_t i = 0; i < count; i++) {
        const char *name = (const char *)fields[i].value;
        size_t length = strnlen(name, fields[i].size);
        if (length == fields[i].size || strncmp(name, "user.", 5)) carry_fail(EINVAL, path);
        if (fsetxattr(fd, name, name + length + 1, fields[i].size - length - 1, 0)) carry_fail(errno, path);
    }
}

static void make_file(char *path, struct request *entry, struct attributes attributes) {
    const char *name;
    int parent = parent_of(path, &name);
    file_size = request_uint(entry, ENTRY_SIZE, 8, 0);
    file_attributes = attributes;
    snprintf(file_path, sizeof file_path, "%s", path);
    file_fd = openat(parent, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (file_fd < 0 || file_size > INT64_MAX || (file_size && ftruncate(file_fd, (off_t)file_size))) carry_fail(file_size > INT64_MAX ? EFBIG : errno, path);
    put_xattrs(file_fd, entry, path);
}

static void take_content(const uint8_t *value, size_t size) {
    uint64_t at = 0;
    if (size < 8 || file_fd < 0) carry_fail(EPROTO, file_path);
    for (int i = 0; i < 8; i++) at |= (uint64_t)value[i] << (8 * i);
    value += 8;
    size -= 8;
    if (at > file_size || size > file_size - at) carry_fail(EPROTO, file_path);
    while (size) {
        ssize_t put = pwrite(file_fd, value, size, (off_t)at);
        if (put < 0 && errno == EINTR) continue;
        if (put <= 0) carry_fail(put ? errno : ENOSPC, file_path);
        value += put;
        size -= (size_t)put;
        at += (uint64_t)put;
    }
}

/* ---- directories: their times at the end, when nothing more is put into them ---- */

static struct dated {
    char *path; /* NULL: the root */
    int64_t mtime;
} *dated;
static size_t dated_count, dated_capacity;

static void date_later(const char *path, int64_t mtime) {
    if (dated_count == dated_capacity) {
        dated_capacity = 2 * dated_capacity + 256;
        dated = realloc(dated, dated_capacity * sizeof *dated);
    }
    char *copy = *path ? strdup(path) : NULL;
    if (!dated || (*path && !copy)) carry_fail(ENOMEM, path);
    dated[dated_count++] = (struct dated){copy, mtime};
}

static void date_directories(void) {
    while (dated_count) {
        const char *name = ".";
        struct dated *last = &dated[--dated_count];
        struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, time_of(last->mtime)};
        int parent = last->path ? parent_of(last->path, &name) : root;
        /* One that a later record replaced is nothing to date. */
        if (utimensat(parent, name, times, AT_SYMLINK_NOFOLLOW) && errno != ENOENT) carry_fail(errno, last->path);
    }
}

static void make_directory(char *path, struct request *entry, struct attributes attributes) {
    const char *name = ".";
    struct stat info;
    int parent = *path ? parent_of(path, &name) : root;
    if (fstatat(parent, name, &info, AT_SYMLINK_NOFOLLOW) == 0 && !S_ISDIR(info.st_mode)) {
        clear(parent, name, path);
        parent = parent_of(path, &name);
    }
    if (mkdirat(parent, name, 0700) && errno != EEXIST) carry_fail(errno, path);
    int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0 || fchown(fd, attributes.uid, attributes.gid) || fchmod(fd, attributes.mode & 07777)) carry_fail(errno, path);
    put_xattrs(fd, entry, path);
    close(fd);
    date_later(path, attributes.mtime);
}

/* ---- everything else ---- */

static void make_link(char *path, char *first) {
    const char *from, *to;
    if (!proper(first)) carry_fail(EINVAL, path);
    int source = dup(parent_of(first, &from));
    int parent = parent_of(path, &to);
    if (source < 0 || linkat(source, from, parent, to, 0)) carry_fail(errno, path);
    close(source);
}

static void make_special(char *path, struct request *entry, struct attributes attributes) {
    const char *name, *target = request_text(entry, ENTRY_TARGET, "");
    int parent = parent_of(path, &name);
    struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, time_of(attributes.mtime)};
    dev_t device = makedev(request_uint(entry, ENTRY_MAJOR, 4, 0), request_uint(entry, ENTRY_MINOR, 4, 0));
    bool link = S_ISLNK(attributes.mode);
    int failed = link ? symlinkat(target, parent, name) : mknodat(parent, name, attributes.mode, device);
    if (failed || fchownat(parent, name, attributes.uid, attributes.gid, AT_SYMLINK_NOFOLLOW) ||
        (!link && fchmodat(parent, name, attributes.mode & 07777, 0)))
        carry_fail(errno, path);
    utimensat(parent, name, times, AT_SYMLINK_NOFOLLOW); /* best effort: not every file system dates these */
}

static void take_entry(uint8_t *value, size_t size) {
    struct request entry;
    static char path[PATH_MAX];
    if (!request_parse(&entry, value, size)) carry_fail(EPROTO, NULL);
    struct attributes attributes = {
        (mode_t)request_uint(&entry, ENTRY_MODE, 4, 0), (uid_t)request_uint(&entry, ENTRY_UID, 4, 0),
        (gid_t)request_uint(&entry, ENTRY_GID, 4, 0), (int64_t)request_uint(&entry, ENTRY_MTIME, 8, 0)};
    const struct field *told = &entry.last[ENTRY_PATH];
    if (told->size >= sizeof path || (told->size && memchr(told->value, 0, told->size))) carry_fail(EPROTO, NULL);
    snprintf(path, sizeof path, "%.*s", (int)told->size, told->size ? (char *)told->value : "");
    bool directory = S_ISDIR(attributes.mode), file = S_ISREG(attributes.mode);
    if (entry.bad || !(proper(path) || (directory && !*path))) carry_fail(EPROTO, path);
    if (directory) {
        make_directory(path, &entry, attributes);
        return;
    }
    const char *name;
    int parent = parent_of(path, &name);
    clear(parent, name, path);
    if (entry.count[ENTRY_LINK]) {
        char first[PATH_MAX];
        const struct field *link = &entry.last[ENTRY_LINK];
        if (link->size >= sizeof first || memchr(link->value, 0, link->size)) carry_fail(EPROTO, path);
        snprintf(first, sizeof first, "%.*s", (int)link->size, (char *)link->value);
        make_link(path, first);
    } else if (file) {
        make_file(path, &entry, attributes);
    } else {
        make_special(path, &entry, attributes);
        if (entry.bad) carry_fail(EPROTO, path);
    }
}

static void take_removal(const uint8_t *value, size_t size) {
    static char path[PATH_MAX];
    const char *name;
    if (size >= sizeof path || memchr(value, 0, size)) carry_fail(EPROTO, NULL);
    memcpy(path, value, size);
    path[size] = 0;
    if (!proper(path)) carry_fail(EPROTO, path);
    int parent = parent_of(path, &name);
    clear(parent, name, path);
}

/* ---- the stream of records ---- */

static void take(uint8_t tag, uint8_t *value, size_t size) {
    if (tag != RECORD_CONTENT) finish_file();
    switch (tag) {
    case RECORD_ENTRY:
        take_entry(value, size);
        return;
    case RECORD_CONTENT:
        take_content(value, size);
        return;
    case RECORD_REMOVE:
        take_removal(value, size);
        return;
    case RECORD_DONE:
        date_directories();
        carry_done();
    default:
        carry_fail(EPROTO, NULL);
    }
}

void unpack_files(void) {
    static uint8_t bytes[5 + CARRIED_MAX + 1]; /* a spare byte behind: texts are ended in place */
    size_t filled = 0;
    root = open(rooted("/"), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (root < 0) carry_fail(errno, NULL);
    for (;;) {
        ssize_t got = read(0, bytes + filled, sizeof bytes - 1 - filled);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) _exit(1); /* the host gave up */
        filled += (size_t)got;
        size_t at = 0;
        struct field field;
        while (field_next(bytes, filled, &at, &field)) {
            uint8_t after = field.value[field.size];
            take(field.tag, field.value, field.size);
            field.value[field.size] = after;
        }
        if (at == 0 && filled == sizeof bytes - 1) carry_fail(E2BIG, NULL);
        memmove(bytes, bytes + at, filled - at);
        filled -= at;
    }
}
