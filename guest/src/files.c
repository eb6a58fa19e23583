/* Single files: stat, mkdir, move, read, write. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "agent.h"

enum { METADATA_MAX = 64 };

void op_stat(uint32_t id, struct request *request) {
    struct place place;
    if (place_find(&place, request, id)) reply_entry(id, FIN, place.path, -1);
}

void op_mkdir(uint32_t id, struct request *request) {
    struct place place;
    struct stat info;
    if (!place_find(&place, request, id)) return;
    int error = make_parents(place.path, place.user);
    if (!error && mkdir(place.path, 0755)) error = errno;
    else if (!error && chown(place.path, place.user->uid, place.user->gid)) error = errno;
    if (error == EEXIST && stat(place.path, &info) == 0 && !S_ISDIR(info.st_mode)) error = ENOTDIR;
    if (error) reply_error(id, error, "%s: %s", place.path, strerror(error));
    else reply_entry(id, FIN, place.path, -1);
}

void op_move(uint32_t id, struct request *request) {
    struct place place;
    struct stat info;
    char destination[PATH_MAX];
    const char *wanted = request_text(request, 3, "");
    if (!place_find(&place, request, id)) return;
    int error = *wanted ? path_resolve(destination, place.user, wanted) : EINVAL;
    if (!error && lstat(place.path, &info)) error = errno;
    if (!error) error = make_parents(destination, place.user);
    if (!error && rename(place.path, destination)) error = errno;
    if (error) reply_error(id, error, "%s: %s", place.path, strerror(error));
    else reply_entry(id, FIN, destination, -1);
}

/* ---- READ and WRITE: streams around a file ---- */

struct file {
    struct stream stream;
    struct source source; /* never in the epoll set: files are always ready */
    uint64_t left;        /* READ: bytes still to send */
    char path[PATH_MAX];  /* WRITE: for the entry at its end */
};

static void file_close(struct stream *stream) { close(((struct file *)stream)->source.fd); }

static void read_run(struct stream *stream) {
    struct file *file = (struct file *)stream;
    uint32_t window = stream->send_window;
    if (file->left < window) stream->send_window = (uint32_t)file->left;
    uint32_t before = stream->send_window;
    int more = file->left ? stream_pump(stream, &file->source, 0) : -1;
    if (more > 0 && before - stream->send_window < PAYLOAD_MAX) more = stream_pump(stream, &file->source, 0); /* most likely its end */
    uint32_t sent = before - stream->send_window;
    file->left -= sent;
    stream->send_window = window - sent;
    if (more < 0) stream_end(stream, (uint32_t)(-1 - more));
    else if (!file->source.readable) stream_end(stream, EAGAIN); /* a "file" that would block */
    else if (!file->left || stream->send_window) stream_enqueue(stream);
}

static void write_data(struct stream *stream, const uint8_t *bytes, size_t size) {
    struct file *file = (struct file *)stream;
    for (size_t done = 0; done < size;) {
        ssize_t put = write(file->source.fd, bytes + done, size - done);
        if (put < 0 && errno == EINTR) continue;
        if (put <= 0) {
            stream_end(stream, put ? (uint32_t)errno : ENOSPC);
            return;
        }
        done += (size_t)put;
    }
    stream_grant(stream, size);
}

static void write_eof(struct stream *stream) {
    struct file *file = (struct file *)stream;
    struct out out = link_fields(END, 0, stream->id);
    put_raw(&out, 4, 0);
    int error = entry_put(&out, file->path, file->source.fd, NULL);
    if (error) {
        out.size = 0;
        put_raw(&out, 4, (uint32_t)error);
    }
    link_send(&out);
    stream_drop(stream);
}

static const struct kind reading = {.run = read_run, .close = file_close};
static const struct kind writing = {.run = NULL, .data = write_data, .eof = write_eof, .close = file_close};

static void file_stream(uint32_t id, const struct kind *kind, int fd, const char *path, uint64_t left) {
    struct file *file = stream_new(sizeof *file, kind, id);
    if (!file) {
        close(fd);
        reply_error(id, ENOMEM, "too many streams");
        return;
    }
    file->source = (struct source){.fd = fd, .readable = true};
    file->left = left;
    strcpy(file->path, path);
    if (kind == &reading) {
        if (reply_entry(id, 0, path, fd)) stream_enqueue(&file->stream);
        else stream_drop(&file->stream);
    } else {
        reply_ok(id, 0);
    }
}

void op_read(uint32_t id, struct request *request) {
    struct place place;
    struct stat info;
    uint64_t offset = request_uint(request, 6, 8, 0), length = request_uint(request, 7, 8, UINT64_MAX);
    int error = 0;
    if (!place_find(&place, request, id)) return;
    int fd = open(place.path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &info)) error = errno;
    else if (S_ISDIR(info.st_mode)) error = EISDIR;
    else if (!S_ISREG(info.st_mode) || offset > INT64_MAX) error = EINVAL;
    else if (offset && lseek(fd, (off_t)offset, SEEK_SET) < 0) error = errno;
    if (!error) {
        file_stream(id, &reading, fd, place.path, length);
        return;
    }
    if (fd >= 0) close(fd);
    reply_error(id, error, "%s: %s", place.path, strerror(error));
}

/* Open for writing, in the order that watchers expect: create, attributes, contents. errno. */
static int open_for_write(const struct place *place, uint32_t mode, bool append, const struct field *metadata, size_t count, int *fd) {
    struct stat info;
    int error = make_parents(place->path, place->user);
    if (error) return error;
    int flags = O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC | (append ? O_APPEND : 0);
    *fd = open(place->path, flags | O_CREAT | O_EXCL, mode);
    bool fresh = *fd >= 0;
    if (!fresh && errno == EEXIST) *fd = open(place->path, flags | O_CREAT, mode); /* also through a dangling symlink */
    if (*fd < 0) return errno == ENXIO ? EINVAL : errno;
    if (fstat(*fd, &info)) return errno;
    if (!S_ISREG(info.st_mode)) return S_ISDIR(info.st_mode) ? EISDIR : EINVAL;
    if (!append && info.st_size && ftruncate(*fd, 0)) return errno;
    if (fchown(*fd, place->user->uid, place->user->gid)) return errno;
    if (fresh && (info.st_mode & 07777) != mode && fchmod(*fd, mode)) return errno;
    return set_metadata(*fd, metadata, count, fresh);
}

void op_write(uint32_t id, struct request *request) {
    struct place place;
    struct field metadata[METADATA_MAX];
    size_t count = request_all(request, 8, metadata, METADATA_MAX);
    uint32_t mode = (uint32_t)request_uint(request, 6, 4, 0644);
    bool append = request_uint(request, 7, 1, 0);
    if (!place_find(&place, request, id)) return;
    int fd = -1, error = count > METADATA_MAX || mode & ~07777U ? EINVAL : 0;
    if (!error) error = open_for_write(&place, mode, append, metadata, count, &fd);
    if (!error) {
        file_stream(id, &writing, fd, place.path, 0);
        return;
    }
    if (fd >= 0) close(fd);
    reply_error(id, error, "%s: %s", place.path, strerror(error));
}
