/* A llama-server that costs next to nothing: every token is a chunk of about 250 bytes in a write of its own.
 *
 * fast_upstream PORT REPLICAS: it listens at so many ports, from PORT on.
 *
 * The text of a request says what to answer: "tokens=100 pace=20000 hold=0 tag=7" are 100 tokens, one every 20,000 µs
 * (0: as fast as the socket takes them), the first after `hold` µs. A token is "@", its number in four hexadecimal
 * digits, the moment of its write in sixteen (CLOCK_MONOTONIC, ns) and a space, so that a reader sees what is lost,
 * doubled, moved or late. `GET /gone` lists the answers whose client went away: their tags, and when it was noticed.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define MAX_FDS 16384
#define REQUEST_BYTES 65536
#define OUT_BYTES 2048
#define GONE_MAX 4096

typedef struct {
    char *in;               /* REQUEST_BYTES, from the first connection of this descriptor on */
    size_t filled;
    char out[OUT_BYTES];    /* what the socket didn't take */
    size_t out_at, out_end;
    int open, streaming, writing;
    long tokens, sent, tag;
    uint64_t pace_ns, due;
} Connection;

static Connection connections[MAX_FDS];
static int epoll_fd, timer_fd;

/* Streams by the moment of their next token: a binary heap of descriptors. */
static int heap[MAX_FDS], heap_size;
/* Unpaced streams whose socket takes more. */
static int hurried[MAX_FDS], hurried_size;

static struct { long tag; uint64_t at; } gone[GONE_MAX];
static int gone_size;

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void heap_push(int fd) {
    int at = heap_size++;
    while (at && connections[heap[(at - 1) / 2]].due > connections[fd].due) {
        heap[at] = heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    heap[at] = fd;
}

static void heap_remove(int at) {
    int last = heap[--heap_size];
    if (at == heap_size) return;
    while (at && connections[heap[(at - 1) / 2]].due > connections[last].due) {
        heap[at] = heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    for (;;) {
        int child = 2 * at + 1;
        if (child >= heap_size) break;
        if (child + 1 < heap_size && connections[heap[child + 1]].due < connections[heap[child]].due) child++;
        if (connections[heap[child]].due >= connections[last].due) break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = last;
}

static void forget(int fd) {
    for (int at = 0; at < heap_size; at++)
        if (heap[at] == fd) { heap_remove(at); break; }
    for (int at = 0; at < hurried_size; at++)
        if (hurried[at] == fd) { hurried[at] = hurried[--hurried_size]; break; }
}

static void watch(int fd, int writing) {
    struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP | (writing ? EPOLLOUT : 0), .data.fd = fd};
    connections[fd].writing = writing;
    epoll_ctl(epoll_fd, EPOLL_CTL_MOD, fd, &event);
}

static void hang_up(int fd) {
    Connection *one = &connections[fd];
    if (one->streaming) {
        if (gone_size < GONE_MAX) {
            gone[gone_size].tag = one->tag;
            gone[gone_size++].at = now_ns();
        }
        forget(fd);
    }
    one->open = one->streaming = 0;
    close(fd);
}

/* Whether everything has gone out. A client that went away is found by reading. */
static int put(int fd, const char *data, size_t length) {
    Connection *one = &connections[fd];
    ssize_t wrote = send(fd, data, length, MSG_NOSIGNAL);
    if (wrote == (ssize_t)length) return 1;
    if (wrote < 0) wrote = 0;
    one->out_at = 0;
    one->out_end = length - (size_t)wrote;
    memcpy(one->out, data + wrote, one->out_end);
    watch(fd, 1);
    return 0;
}

static size_t framed(char *to, const char *data, size_t length) {
    size_t at = (size_t)sprintf(to, "%zx\r\n", length);
    memcpy(to + at, data, length);
    memcpy(to + at + length, "\r\n", 2);
    return at + length + 2;
}

#define TAIL \
    "}}],\"created\":1795000000,\"id\":\"chatcmpl-5zX0fJ2m9QeVb7sLkT4uYw8RnHcGdAoP\",\"model\":\"fast\"," \
    "\"system_fingerprint\":\"b9999-0123456789\",\"object\":\"chat.completion.chunk\""
#define EVENT "data: {\"choices\":[{\"finish_reason\":%s,\"index\":0,\"delta\":{%s" TAIL "%s}\n\n"

/* The answer's next token, and its end after the last. Whether the socket takes more. */
static int speak(int fd) {
    Connection *one = &connections[fd];
    char delta[64], event[1024], out[OUT_BYTES];
    size_t length;
    sprintf(delta, "\"content\":\"@%04lx%016lx \"", one->sent & 0xffff, (unsigned long)now_ns());
    length = framed(out, event, (size_t)sprintf(event, EVENT, "null", delta, ""));
    if (++one->sent < one->tokens) return put(fd, out, length);
    char timings[400];
    double ms = (double)one->pace_ns * (double)one->tokens / 1e6 + 0.001;
    sprintf(timings,
            ",\"usage\":{\"completion_tokens\":%ld,\"prompt_tokens\":20,\"total_tokens\":%ld},\"timings\":{\"cache_n\":0,"
            "\"prompt_n\":20,\"prompt_ms\":1.0,\"predicted_n\":%ld,\"predicted_ms\":%.3f,\"predicted_per_second\":%.3f}",
            one->tokens, one->tokens + 20, one->tokens, ms, (double)one->tokens / ms * 1000);
    length += framed(out + length, event, (size_t)sprintf(event, EVENT, "\"stop\"", "", timings));
    length += framed(out + length, "data: [DONE]\n\n", 14);
    length += (size_t)sprintf(out + length, "0\r\n\r\n");
    one->streaming = 0;
    put(fd, out, length);
    return 0;
}

static long wish(const char *body, const char *name, long otherwise) {
    const char *at = strstr(body, name);
    return at ? atol(at + strlen(name)) : otherwise;
}

static void begin(int fd, const char *body) {
    static const char head[] =
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\nServer: llama.cpp\r\n\r\n";
    Connection *one = &connections[fd];
    char event[1024], out[OUT_BYTES];
    one->tokens = wish(body, "tokens=", 1);
    one->pace_ns = (uint64_t)wish(body, "pace=", 0) * 1000;
    one->tag = wish(body, "tag=", 0);
    uint64_t hold_ns = (uint64_t)wish(body, "hold=", 0) * 1000;
    one->sent = 0;
    one->streaming = 1;
    memcpy(out, head, sizeof head - 1);
    int size = sprintf(event, EVENT, "null", "\"role\":\"assistant\",\"content\":null", "");
    put(fd, out, sizeof head - 1 + framed(out + sizeof head - 1, event, (size_t)size));
    if (!hold_ns && !one->pace_ns) {
        hurried[hurried_size++] = fd;
        return;
    }
    one->due = now_ns() + hold_ns;
    heap_push(fd);
}

static void answer(int fd, const char *status, const char *body) {
    static char out[GONE_MAX * 48 + 512];
    int length = sprintf(out, "HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s", status,
                         strlen(body), body);
    if (send(fd, out, (size_t)length, MSG_NOSIGNAL) < 0) hang_up(fd);
}

static void tell_gone(int fd) {
    static char body[GONE_MAX * 48 + 8];
    size_t at = (size_t)sprintf(body, "[");
    for (int each = 0; each < gone_size; each++)
        at += (size_t)sprintf(body + at, "%s[%ld,%lu]", each ? "," : "", gone[each].tag, (unsigned long)gone[each].at);
    sprintf(body + at, "]");
    answer(fd, "200 OK", body);
}

static void serve(int fd, const char *head, const char *body) {
    if (!strncmp(head, "GET /health", 11) || !strncmp(head, "GET /v1/health", 14))
        answer(fd, "200 OK", "{\"status\":\"ok\"}");
    else if (!strncmp(head, "GET /gone", 9))
        tell_gone(fd);
    else if (!strncmp(head, "GET /slots", 10))
        answer(fd, "200 OK", "[]");
    else if (!strncmp(head, "GET /props", 10))
        answer(fd, "200 OK", "{\"total_slots\":2048,\"model_path\":\"fast.gguf\"}");
    else if (!strncmp(head, "POST /tokenize", 14))
        answer(fd, "200 OK", "{\"tokens\":[1,2,3]}");
    else if (!strncmp(head, "POST /", 6) && strstr(head, "completions"))
        begin(fd, body);
    else
        answer(fd, "404 Not Found", "{\"error\":{\"code\":404,\"message\":\"Not Found\",\"type\":\"not_found_error\"}}");
}

static void listen_to(int fd) {
    Connection *one = &connections[fd];
    ssize_t got = recv(fd, one->in + one->filled, REQUEST_BYTES - 1 - one->filled, 0);
    if (got == 0 || (got < 0 && errno != EAGAIN)) {
        hang_up(fd);
        return;
    }
    if (got < 0) return;
    one->filled += (size_t)got;
    one->in[one->filled] = 0;
    char *end = strstr(one->in, "\r\n\r\n");
    if (!end || one->streaming) return;
    char *length = strcasestr(one->in, "\r\ncontent-length:");
    size_t whole = (size_t)(end + 4 - one->in) + (length && length < end ? (size_t)atol(length + 17) : 0);
    if (one->filled < whole) {
        if (whole >= REQUEST_BYTES) hang_up(fd);
        return;
    }
    one->filled = 0;
    *end = 0;
    serve(fd, one->in, end + 4);
}

static void go_on(int fd) {
    Connection *one = &connections[fd];
    ssize_t wrote = send(fd, one->out + one->out_at, one->out_end - one->out_at, MSG_NOSIGNAL);
    if (wrote > 0) one->out_at += (size_t)wrote;
    if (one->out_at < one->out_end) return;
    watch(fd, 0);
    if (one->streaming && !one->pace_ns) hurried[hurried_size++] = fd;
}

static void welcome(int door) {
    int fd, yes = 1;
    while ((fd = accept4(door, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        if (fd >= MAX_FDS) {
            close(fd);
            continue;
        }
        Connection *one = &connections[fd];
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
        if (!one->in) one->in = malloc(REQUEST_BYTES);
        one->filled = 0;
        one->open = 1;
        one->streaming = one->writing = 0;
        struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP, .data.fd = fd};
        epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event);
    }
}

/* Every paced stream whose moment has come. */
static void keep_pace(void) {
    while (heap_size) {
        int fd = heap[0];
        Connection *one = &connections[fd];
        if (one->due > now_ns()) {
            struct itimerspec timer = {{0, 0}, {(time_t)(one->due / 1000000000u), (long)(one->due % 1000000000u)}};
            timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &timer, NULL);
            return;
        }
        heap_remove(0);
        int writing = one->writing;
        /* A client that doesn't read misses its turn, as with a real server. */
        if (!writing) speak(fd);
        if (!one->streaming) continue;
        if (one->pace_ns) {
            one->due += one->pace_ns;
            heap_push(fd);
        } else if (!one->writing) {
            hurried[hurried_size++] = fd;
        }
    }
}

/* One token of every unpaced stream. */
static void hurry(void) {
    for (int at = 0; at < hurried_size;) {
        if (speak(hurried[at])) at++;
        else hurried[at] = hurried[--hurried_size];
    }
}

static int listener(int port) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), yes = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (bind(fd, (struct sockaddr *)&address, sizeof address) || listen(fd, 4096)) {
        perror("fast_upstream");
        exit(1);
    }
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event);
    return fd;
}

int main(int count, char **arguments) {
    if (count != 3) return 2;
    signal(SIGPIPE, SIG_IGN);
    prctl(PR_SET_TIMERSLACK, 1);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    epoll_fd = epoll_create1(0);
    int first = 0, last = 0;
    for (int at = 0; at < atoi(arguments[2]); at++) {
        last = listener(atoi(arguments[1]) + at);
        if (!first) first = last;
    }
    timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    struct epoll_event events[512], event = {.events = EPOLLIN, .data.fd = timer_fd};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, timer_fd, &event);
    for (;;) {
        int ready = epoll_wait(epoll_fd, events, 512, hurried_size ? 0 : -1);
        for (int at = 0; at < ready; at++) {
            int fd = events[at].data.fd;
            if (fd >= first && fd <= last) {
                welcome(fd);
            } else if (fd == timer_fd) {
                uint64_t times;
                if (read(timer_fd, &times, sizeof times) < 0) continue;
            } else {
                if (connections[fd].open && events[at].events & EPOLLOUT) go_on(fd);
                if (connections[fd].open && events[at].events & ~(uint32_t)EPOLLOUT) listen_to(fd);
            }
        }
        keep_pace();
        hurry();
    }
}
