/* A program inside that uses the network: `tcp ADDRESS PORT` sends its input and prints what comes back,
   `udp ADDRESS PORT` sends its input as one datagram and prints the answer. A failure is its errno. */
#include <arpa/inet.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static char buffer[1 << 16];

static void copy(int from, int to) {
    ssize_t got;
    while ((got = read(from, buffer, sizeof buffer)) > 0)
        for (ssize_t done = 0, put; done < got; done += put)
            if ((put = write(to, buffer + done, (size_t)(got - done))) < 0) exit(errno);
    if (got < 0) exit(errno);
}

int main(int argc, char **argv) {
    if (argc != 4) return 255;
    int datagrams = !strcmp(argv[1], "udp"), fd = socket(AF_INET, datagrams ? SOCK_DGRAM : SOCK_STREAM, 0);
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(argv[3]))};
    if (fd < 0 || !inet_aton(argv[2], &to.sin_addr) || connect(fd, (struct sockaddr *)&to, sizeof to)) return errno;
    if (datagrams) {
        ssize_t size = read(0, buffer, sizeof buffer);
        if (write(fd, buffer, (size_t)size) < 0 || (size = read(fd, buffer, sizeof buffer)) < 0) return errno;
        return write(1, buffer, (size_t)size) != size;
    }
    copy(0, fd);
    shutdown(fd, SHUT_WR);
    copy(fd, 1);
    return 0;
}
