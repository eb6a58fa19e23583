/* Byte streams in and out: DIAL from the host, CONNECT for redirected connections, RESOLVE for DNS. */
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "agent.h"

enum { ORIGINAL_DST = 80 /* SO_ORIGINAL_DST; its header does not go with netinet */ };
enum { REDIRECT_PORT = 61000, DNS_PORT = 53, QUERY_MAX = 4096, QUERIES_MAX = 256 };

struct tunnel {
    struct stream stream;
    struct source socket;
    struct backlog input;
    bool connecting, second_try, established, guest_eof, shut, host_over;
    uint16_t port; /* DIAL: where to */
};

static void tunnel_close(struct stream *stream) {
    struct tunnel *tunnel = (struct tunnel *)stream;
    source_close(&tunnel->socket);
    backlog_free(&tunnel->input);
}

static void reset(struct tunnel *tunnel) {
    struct linger now = {1, 0};
    setsockopt(tunnel->socket.fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
}

/* The guest's side broke. */
static void fail(struct tunnel *tunnel, int error) {
    struct stream *stream = &tunnel->stream;
    if (stream->id & 1) {
        stream_end(stream, (uint32_t)error);
        return;
    }
    if (!tunnel->host_over) link_put(CLOSE, 0, stream->id, NULL, 0);
    stream_drop(stream);
}

static int try_connect(struct tunnel *tunnel) {
    struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = htons(tunnel->port), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_port = htons(tunnel->port), .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    bool six = tunnel->second_try;
    source_close(&tunnel->socket);
    tunnel->socket.fd = socket(six ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (tunnel->socket.fd < 0) return errno;
    tunnel->socket.readable = tunnel->socket.writable = tunnel->socket.hangup = false;
    if (connect(tunnel->socket.fd, six ? (void *)&v6 : (void *)&v4, six ? sizeof v6 : sizeof v4) && errno != EINPROGRESS) return errno;
    tunnel->connecting = true;
    int error = source_add(&tunnel->socket, EPOLLIN | EPOLLRDHUP);
    if (!error) source_await_writable(&tunnel->socket);
    return error;
}

/* True when a DIAL has come to an end, well or not. */
static void go_on_connecting(struct tunnel *tunnel) {
    int error = 0;
    socklen_t size = sizeof error;
    getsockopt(tunnel->socket.fd, SOL_SOCKET, SO_ERROR, &error, &size);
    if (!error) {
        tunnel->connecting = false;
        tunnel->established = true;
        reply_ok(tunnel->stream.id, 0);
        return;
    }
    if (!tunnel->second_try) {
        tunnel->second_try = true;
        if (!try_connect(tunnel)) return;
    }
    reply_error(tunnel->stream.id, error, "port %u: %s", tunnel->port, strerror(error));
    stream_drop(&tunnel->stream);
}

/* False: the tunnel is gone. */
static bool feed(struct tunnel *tunnel) {
    while (tunnel->input.size && tunnel->socket.writable) {
        ssize_t put = send(tunnel->socket.fd, tunnel->input.bytes + tunnel->input.start, tunnel->input.size, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (put >= 0) {
            backlog_take(&tunnel->input, (size_t)put);
            if (!tunnel->host_over) stream_grant(&tunnel->stream, (size_t)put);
        } else if (errno == EAGAIN) {
            source_await_writable(&tunnel->socket);
        } else if (errno != EINTR) {
            fail(tunnel, errno);
            return false;
        }
    }
    if (tunnel->stream.host_eof && !tunnel->input.size && !tunnel->shut) {
        tunnel->shut = true;
        shutdown(tunnel->socket.fd, SHUT_WR);
    }
    return true;
}

static void tunnel_run(struct stream *stream) {
    struct tunnel *tunnel = (struct tunnel *)stream;
    if (tunnel->connecting && tunnel->socket.writable) go_on_connecting(tunnel);
    if (stream->over || !tunnel->established || !feed(tunnel)) return;
    if (tunnel->host_over) {
        if (!tunnel->input.size) stream_drop(stream);
        return;
    }
    int more = tunnel->guest_eof ? 0 : stream_pump(stream, &tunnel->socket, 0);
    if (more < -1) {
        fail(tunnel, -1 - more);
        return;
    }
    if (more == -1) {
        tunnel->guest_eof = true;
        link_put(END_OF_DATA, 0, stream->id, NULL, 0);
    }
    if (tunnel->guest_eof && tunnel->shut && stream->id & 1) stream_end(stream, 0);
    else if (more > 0) stream_enqueue(stream);
}

static void tunnel_data(struct stream *stream, const uint8_t *bytes, size_t size) {
    struct tunnel *tunnel = (struct tunnel *)stream;
    if (!tunnel->input.size && tunnel->established && tunnel->socket.writable) { /* straight through, mostly */
        ssize_t put = send(tunnel->socket.fd, bytes, size, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (put > 0) {
            stream_grant(stream, (size_t)put);
            bytes += put;
            size -= (size_t)put;
        }
    }
    if (!size) return;
    if (backlog_add(&tunnel->input, bytes, size)) stream_enqueue(stream);
    else fail(tunnel, ENOMEM);
}

static void tunnel_eof(struct stream *stream) { stream_enqueue(stream); }

static const struct kind dialling = {.run = tunnel_run, .data = tunnel_data, .eof = tunnel_eof, .close = tunnel_close};

void op_dial(uint32_t id, struct request *request) {
    uint16_t port = (uint16_t)request_uint(request, 6, 2, 0);
    if (request->bad || !port) {
        reply_error(id, EINVAL, "malformed port");
        return;
    }
    struct tunnel *tunnel = stream_new(sizeof *tunnel, &dialling, id);
    if (!tunnel) {
        reply_error(id, ENOMEM, "too many streams");
        return;
    }
    tunnel->port = port;
    tunnel->socket = (struct source){.fd = -1, .wake = stream_wake, .owner = &tunnel->stream, .flows = true};
    int error = try_connect(tunnel);
    if (error == ECONNREFUSED) {
        tunnel->second_try = true;
        if (!try_connect(tunnel)) return;
    }
    if (!error) return;
    reply_error(id, error, "port %u: %s", port, strerror(error));
    stream_drop(&tunnel->stream);
}

/* ---- outwards: TCP ---- */

static void outward_reply(struct stream *stream, uint32_t error, struct request *request) {
    struct tunnel *tunnel = (struct tunnel *)stream;
    (void)request;
    if (tunnel->established) return;
    if (error || source_add(&tunnel->socket, EPOLLIN | EPOLLRDHUP)) {
        reset(tunnel);
        stream_drop(stream);
        return;
    }
    tunnel->established = true;
    stream_enqueue(stream);
}

static void outward_end(struct stream *stream, uint32_t error) {
    struct tunnel *tunnel = (struct tunnel *)stream;
    tunnel->host_over = stream->host_eof = true;
    if (error) reset(tunnel);
    if (error || !tunnel->established || !tunnel->input.size) stream_drop(stream);
}

static const struct kind outward = {
    .run = tunnel_run, .data = tunnel_data, .eof = tunnel_eof, .reply = outward_reply, .end = outward_end, .close = tunnel_close};

void tunnel_abort(struct stream *stream) {
    struct tunnel *tunnel = (struct tunnel *)stream;
    bool is_tunnel = stream->kind == &dialling || stream->kind == &outward;
    if (is_tunnel && tunnel->socket.fd >= 0 && !tunnel->host_over) reset(tunnel); /* cut short must not look complete */
}

static struct source listener = {.fd = -1}, resolver = {.fd = -1};

/* Where the guest's program wanted to go. */
static bool original_destination(int fd, struct sockaddr_in *to) {
    socklen_t size = sizeof *to;
    if (getsockopt(fd, SOL_IP, ORIGINAL_DST, to, &size) == 0) return ntohs(to->sin_port) != REDIRECT_PORT;
    size = sizeof *to;
    bool told = (settings.native || settings.stream >= 0) && getsockname(fd, (struct sockaddr *)to, &size) == 0;
    return told && (settings.native || ntohs(to->sin_port) != REDIRECT_PORT);
}

static void open_outward(int fd) {
    struct sockaddr_in to;
    bool known = original_destination(fd, &to);
    uint32_t id = stream_own_id();
    struct tunnel *tunnel = known ? stream_new(sizeof *tunnel, &outward, id) : NULL;
    if (!tunnel) {
        struct linger now = {1, 0};
        setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
        close(fd);
        return;
    }
    tunnel->socket = (struct source){.fd = fd, .wake = stream_wake, .owner = &tunnel->stream, .writable = true, .readable = true, .flows = true};
    struct out out = link_fields(OPEN, 0, id);
    put_raw(&out, 1, OP_CONNECT);
    put_bytes(&out, 6, &to.sin_addr, 4);
    put_uint(&out, 7, 2, ntohs(to.sin_port));
    link_send(&out);
}

/* ---- outwards: DNS ---- */

struct query {
    struct stream stream;
    struct sockaddr_in from;
    struct in_addr asked; /* the answer must come from the address that was asked */
    uint8_t header[4];
};

static void answer(const struct query *query, const void *bytes, size_t size) {
    union {
        char space[CMSG_SPACE(sizeof(struct in_pktinfo))];
        struct cmsghdr align;
    } control = {0};
    struct iovec part = {(void *)bytes, size};
    struct msghdr message = {.msg_name = (void *)&query->from, .msg_namelen = sizeof query->from, .msg_iov = &part, .msg_iovlen = 1,
                             .msg_control = control.space, .msg_controllen = sizeof control.space};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    *header = (struct cmsghdr){.cmsg_level = IPPROTO_IP, .cmsg_type = IP_PKTINFO, .cmsg_len = CMSG_LEN(sizeof(struct in_pktinfo))};
    struct in_pktinfo info = {.ipi_spec_dst = query->asked};
    memcpy(CMSG_DATA(header), &info, sizeof info);
    sendmsg(resolver.fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL); /* a lost datagram is what DNS expects */
}

static void query_reply(struct stream *stream, uint32_t error, struct request *request) {
    struct query *query = (struct query *)stream;
    const struct field *packet = &request->last[6];
    if (!error && packet->size) {
        answer(query, packet->value, packet->size);
    } else {
        uint8_t failed[12] = {query->header[0], query->header[1], (uint8_t)(query->header[2] | 0x80), 0x82}; /* SERVFAIL */
        answer(query, failed, sizeof failed);
    }
    stream_drop(stream);
}

static void query_end(struct stream *stream, uint32_t error) {
    (void)error;
    stream_drop(stream);
}

static void query_close(struct stream *stream) { (void)stream; }

static const struct kind resolving = {.reply = query_reply, .end = query_end, .close = query_close};

static void open_query(const struct query *asked, const uint8_t *packet, size_t size) {
    static uint32_t recent[QUERIES_MAX];
    static size_t next;
    uint32_t id = stream_own_id(), *slot = &recent[next++ % QUERIES_MAX];
    struct stream *oldest = *slot ? stream_find(*slot) : NULL;
    if (oldest) { /* never answered */
        link_put(CLOSE, 0, oldest->id, NULL, 0);
        stream_drop(oldest);
    }
    struct query *query = stream_new(sizeof *query, &resolving, id);
    *slot = query ? id : 0;
    if (!query) return;
    query->from = asked->from;
    query->asked = asked->asked;
    memcpy(query->header, packet, sizeof query->header);
    struct out out = link_fields(OPEN, 0, id);
    put_raw(&out, 1, OP_RESOLVE);
    put_bytes(&out, 6, packet, size);
    link_send(&out);
}

/* False when there is no query to be read. */
static bool receive_query(void) {
    static uint8_t packet[QUERY_MAX];
    struct query query = {0};
    union {
        char space[256];
        struct cmsghdr align;
    } control;
    struct iovec part = {packet, sizeof packet};
    struct msghdr message = {.msg_name = &query.from, .msg_namelen = sizeof query.from, .msg_iov = &part, .msg_iovlen = 1,
                             .msg_control = control.space, .msg_controllen = sizeof control.space};
    ssize_t size = recvmsg(resolver.fd, &message, MSG_DONTWAIT);
    if (size < 0) return errno != EAGAIN;
    for (struct cmsghdr *header = CMSG_FIRSTHDR(&message); header; header = CMSG_NXTHDR(&message, header)) {
        struct in_pktinfo info;
        if (header->cmsg_level != IPPROTO_IP || header->cmsg_type != IP_PKTINFO) continue;
        memcpy(&info, CMSG_DATA(header), sizeof info);
        query.asked = info.ipi_addr;
    }
    if (size >= 12 && !(message.msg_flags & MSG_TRUNC)) open_query(&query, packet, (size_t)size);
    return true;
}

/* ---- both listeners ---- */

void tunnel_accept(void) {
    while (listener.readable && !link_full()) {
        int fd = accept4(listener.fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0) open_outward(fd);
        else if (errno != EINTR && errno != ECONNABORTED) listener.readable = false;
    }
    while (resolver.readable && !link_full())
        if (!receive_query()) resolver.readable = false;
}

static void note(struct source *source) { (void)source; }

static int listen_on(int type, uint16_t port) {
    struct sockaddr_in any = {.sin_family = AF_INET, .sin_port = htons(port)};
    int one = 1, fd = socket(AF_INET, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) return -1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(fd, (struct sockaddr *)&any, sizeof any) == 0 && (type == SOCK_DGRAM || listen(fd, 1024) == 0)) return fd;
    close(fd);
    return -1;
}

void tunnel_listen(void) {
    int one = 1;
    listener = (struct source){.fd = settings.redirect, .wake = note};
    resolver = (struct source){.fd = settings.dns, .wake = note};
    if (!settings.native) {
        listener.fd = listen_on(SOCK_STREAM, REDIRECT_PORT);
        resolver.fd = listen_on(SOCK_DGRAM, DNS_PORT);
        if (listener.fd < 0 || resolver.fd < 0) say("no way outwards: %s", strerror(errno));
        int error = settings.stream < 0 ? 0 : redirect_all(listener.fd);
        if (error) say("no way outwards: %s", strerror(error));
    }
    if (resolver.fd >= 0) setsockopt(resolver.fd, IPPROTO_IP, IP_PKTINFO, &one, sizeof one);
    if (listener.fd >= 0) source_add(&listener, EPOLLIN);
    if (resolver.fd >= 0) source_add(&resolver, EPOLLIN);
}
