/* The way outwards under a Linux kernel without a network card. Every IPv4 address is local, so that a connection to any of
   them is looked up among our own sockets; there a program of a dozen instructions (BPF, sk_lookup) hands it to the agent's
   listener, which sees by getsockname where it was meant to go. Datagrams to port 53 find the agent's socket by themselves.
   No module, no rule and no state per connection: what root inside breaks of it only cuts root off. */
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "agent.h"

enum { ADDRESS = 0x0a000002 /* 10.0.0.2 */, LOOPBACK_NET = 127 };
static const char DEVICE[] = "eth0", KIND[] = "dummy"; /* programs that look for a network look for one that is not lo */

/* ---- addresses and routes ---- */

struct message {
    _Alignas(4) uint8_t bytes[256];
    size_t size;
};

static struct message *begin(struct message *message, uint16_t type, uint16_t flags, const void *body, size_t size) {
    struct nlmsghdr header = {.nlmsg_type = type, .nlmsg_flags = (uint16_t)(NLM_F_REQUEST | NLM_F_ACK | flags)};
    memcpy(message->bytes, &header, sizeof header);
    memcpy(message->bytes + sizeof header, body, size);
    message->size = NLMSG_ALIGN(sizeof header + size);
    return message;
}

static size_t attribute(struct message *message, uint16_t type, const void *value, size_t size) {
    struct rtattr header = {.rta_type = type, .rta_len = (uint16_t)RTA_LENGTH(size)};
    size_t at = message->size;
    memcpy(message->bytes + at, &header, sizeof header);
    if (size) memcpy(message->bytes + at + sizeof header, value, size);
    message->size += RTA_SPACE(size);
    return at;
}

/* Send it, and take the kernel's answer: errno. */
static int ask(int fd, struct message *message) {
    struct {
        struct nlmsghdr header;
        struct nlmsgerr answer;
        uint8_t rest[512];
    } reply;
    uint32_t size = (uint32_t)message->size;
    memcpy(message->bytes, &size, 4);
    if (send(fd, message->bytes, message->size, 0) < 0 || recv(fd, &reply, sizeof reply, 0) < 0) return errno;
    return reply.header.nlmsg_type == NLMSG_ERROR ? -reply.answer.error : EPROTO;
}

static int add_device(int fd) {
    struct message message;
    struct ifinfomsg link = {.ifi_flags = IFF_UP, .ifi_change = IFF_UP};
    begin(&message, RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &link, sizeof link);
    attribute(&message, IFLA_IFNAME, DEVICE, sizeof DEVICE);
    size_t nest = attribute(&message, IFLA_LINKINFO, NULL, 0);
    attribute(&message, IFLA_INFO_KIND, KIND, sizeof KIND - 1);
    uint16_t size = (uint16_t)(message.size - nest);
    memcpy(message.bytes + nest, &size, 2);
    return ask(fd, &message);
}

static int raise_loopback(int fd) {
    struct message message;
    struct ifinfomsg link = {.ifi_index = (int)if_nametoindex("lo"), .ifi_flags = IFF_UP, .ifi_change = IFF_UP};
    return ask(fd, begin(&message, RTM_NEWLINK, 0, &link, sizeof link));
}

static int add_address(int fd, unsigned device) {
    struct message message;
    uint32_t address = htonl(ADDRESS);
    struct ifaddrmsg body = {.ifa_family = AF_INET, .ifa_prefixlen = 32, .ifa_index = device};
    begin(&message, RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, &body, sizeof body);
    attribute(&message, IFA_LOCAL, &address, 4);
    attribute(&message, IFA_ADDRESS, &address, 4);
    return ask(fd, &message);
}

/* Every address: `local` is what makes it ours, the other is for programs that look for a default route. */
static int add_route(int fd, bool local, unsigned device) {
    struct message message;
    uint32_t source = htonl(ADDRESS);
    struct rtmsg body = {.rtm_family = AF_INET, .rtm_table = local ? RT_TABLE_LOCAL : RT_TABLE_MAIN, .rtm_protocol = RTPROT_BOOT,
                         .rtm_scope = local ? RT_SCOPE_HOST : RT_SCOPE_LINK, .rtm_type = local ? RTN_LOCAL : RTN_UNICAST};
    begin(&message, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, &body, sizeof body);
    attribute(&message, RTA_OIF, &device, 4);
    attribute(&message, RTA_PREFSRC, &source, 4);
    return ask(fd, &message);
}

static void write_setting(const char *path, const char *value) {
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, value, strlen(value)) < 0) say("%s: %s", path, strerror(errno));
    if (fd >= 0) close(fd);
}

static int make_every_address_local(void) {
    int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    int error = fd < 0 ? errno : raise_loopback(fd);
    if (!error) error = add_device(fd);
    unsigned device = error ? 0 : if_nametoindex(DEVICE);
    if (!error) error = add_address(fd, device);
    if (!error) error = add_route(fd, true, if_nametoindex("lo"));
    if (!error) error = add_route(fd, false, device);
    if (fd >= 0) close(fd);
    write_setting("/proc/sys/net/ipv4/icmp_echo_ignore_all", "1"); /* nobody far away answers, so nobody here does for them */
    write_setting("/proc/sys/net/ipv6/conf/eth0/disable_ipv6", "1");
    return error;
}

/* ---- connections ---- */

static int bpf(int command, union bpf_attr *attributes) { return (int)syscall(SYS_bpf, command, attributes, sizeof *attributes); }

enum { R0, R1, R2, R3, R6 = 6, R7, R10 = 10 };
#define OP(c, d, s, o, i) ((struct bpf_insn){.code = (c), .dst_reg = (d), .src_reg = (s), .off = (o), .imm = (i)})
#define FIELD(d, name) OP(BPF_LDX | BPF_MEM | BPF_W, d, R6, offsetof(struct bpf_sk_lookup, name), 0)
#define IF_GO(d, i, o) OP(BPF_JMP | BPF_JEQ | BPF_K, d, 0, o, i)
#define SET(d, i) OP(BPF_ALU64 | BPF_MOV | BPF_K, d, 0, 0, i)
#define COPY(d, s) OP(BPF_ALU64 | BPF_MOV | BPF_X, d, s, 0, 0)
#define CALL(f) OP(BPF_JMP | BPF_CALL, 0, 0, 0, f)

static int load_program(int map) {
    static char log[4096];
    const struct bpf_insn program[] = {
        COPY(R6, R1),
        FIELD(R2, family),
        OP(BPF_JMP | BPF_JNE | BPF_K, R2, 0, 20, AF_INET),
        FIELD(R2, protocol),
        OP(BPF_JMP | BPF_JNE | BPF_K, R2, 0, 18, IPPROTO_TCP),
        FIELD(R2, local_ip4), /* as on the wire: its first byte is the lowest */
        IF_GO(R2, (int32_t)__builtin_bswap32(ADDRESS), 16),
        OP(BPF_ALU64 | BPF_AND | BPF_K, R2, 0, 0, 0xff),
        IF_GO(R2, LOOPBACK_NET, 14),
        OP(BPF_ST | BPF_MEM | BPF_W, R10, 0, -4, 0),
        OP(BPF_LD | BPF_DW | BPF_IMM, R1, BPF_PSEUDO_MAP_FD, 0, map),
        OP(0, 0, 0, 0, 0),
        COPY(R2, R10),
        OP(BPF_ALU64 | BPF_ADD | BPF_K, R2, 0, 0, -4),
        CALL(BPF_FUNC_map_lookup_elem),
        IF_GO(R0, 0, 7),
        COPY(R7, R0),
        COPY(R1, R6),
        COPY(R2, R7),
        SET(R3, 0),
        CALL(BPF_FUNC_sk_assign),
        COPY(R1, R7),
        CALL(BPF_FUNC_sk_release),
        SET(R0, SK_PASS),
        OP(BPF_JMP | BPF_EXIT, 0, 0, 0, 0),
    };
    union bpf_attr load = {.prog_type = BPF_PROG_TYPE_SK_LOOKUP, .expected_attach_type = BPF_SK_LOOKUP,
                           .insns = (uintptr_t)program, .insn_cnt = sizeof program / sizeof *program,
                           .license = (uintptr_t) "GPL", .log_buf = (uintptr_t)log, .log_size = sizeof log, .log_level = 1};
    int fd = bpf(BPF_PROG_LOAD, &load);
    if (fd < 0) say("%s", log);
    return fd;
}

static int steer_connections(int listener) {
    uint32_t key = 0;
    uint64_t value = (uint64_t)listener;
    union bpf_attr create = {.map_type = BPF_MAP_TYPE_SOCKMAP, .key_size = 4, .value_size = 8, .max_entries = 1};
    int map = bpf(BPF_MAP_CREATE, &create);
    if (map < 0) return errno;
    union bpf_attr update = {.map_fd = (uint32_t)map, .key = (uintptr_t)&key, .value = (uintptr_t)&value};
    int program = bpf(BPF_MAP_UPDATE_ELEM, &update) ? -1 : load_program(map), error = program < 0 ? errno : 0;
    int here = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
    union bpf_attr attach = {.link_create = {.prog_fd = (uint32_t)program, .target_fd = (uint32_t)here, .attach_type = BPF_SK_LOOKUP}};
    if (!error && bpf(BPF_LINK_CREATE, &attach) < 0) error = errno; /* its descriptor stays open: it lives as long as we do */
    if (here >= 0) close(here);
    if (program >= 0) close(program);
    close(map);
    return error;
}

int redirect_all(int listener) {
    int error = make_every_address_local();
    return error ? error : steer_connections(listener);
}
