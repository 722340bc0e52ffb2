/* Clients of a streaming API, as light as they can be, all in one process.
 *
 * load PORT name=value ...
 *
 * `streams` clients ask `requests` times one after the other, each on one kept connection, for `tokens` tokens, one
 * every `pace` µs, the first after `hold` µs; client n begins at n × `ramp` µs and at random up to one `pace` later, the
 * same in every run: people don't read in step. With `key` and `model` they ask as the API wants it. `leave`: a client closes its connection so many µs after its first token. `stall`: it stops reading for
 * so many ms then. After `limit` ms the rest has failed. Prints `streaming` once every client had a first token and, for
 * each that leaves, its tag and the moment; at the end what was measured, in µs. All of it is checked: whatever is lost,
 * doubled or out of order makes an answer a failed one.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
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

#define TOKEN_BYTES 21
#define KEPT_BYTES 64
#define READ_BYTES 65536

enum state { WAITING, ASKED, STREAMING, LEAVING, STALLED, DONE };

typedef struct {
    int fd, number;
    enum state state;
    long asked, expected;
    uint64_t wake, asked_at;
    /* The answer's framing: bytes of the chunk that still come, and what is known of the head. */
    int in_head;
    long chunk;
    char kept[KEPT_BYTES];
    size_t kept_size;
    char line[256];
    size_t line_size;
} Client;

static struct { const char *name; long value; } options[] = {
    {"streams", 1}, {"requests", 1}, {"tokens", 10}, {"pace", 0}, {"hold", 0}, {"ramp", 0},
    {"leave", 0},   {"stall", 0},    {"limit", 60000},
};
static const char *key = "", *model = "fast";
static int port, epoll_fd, timer_fd;
static Client *clients;
static uint64_t next_wake;
static long streams, finished, with_first, answers, failed, chunks;
static uint64_t bytes;
static uint32_t *firsts, *delays;
static size_t firsts_size, firsts_room, delays_size, delays_room;
static char complaint[400];

static long option(const char *name) {
    for (size_t at = 0; at < sizeof options / sizeof *options; at++)
        if (!strcmp(options[at].name, name)) return options[at].value;
    abort();
}

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* A number below `limit` that looks random: Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", 2014. */
static uint64_t scattered(uint64_t number, uint64_t limit) {
    uint64_t mixed = (number + 1) * 0x9e3779b97f4a7c15u;
    mixed = (mixed ^ mixed >> 30) * 0xbf58476d1ce4e5b9u;
    mixed = (mixed ^ mixed >> 27) * 0x94d049bb133111ebu;
    return limit ? (mixed ^ mixed >> 31) % limit : 0;
}

static void note(uint32_t **all, size_t *size, size_t *room, uint64_t ns) {
    if (*size == *room) *all = realloc(*all, (*room = *room ? *room * 2 : 65536) * sizeof **all);
    (*all)[(*size)++] = ns > 4000000000u ? 4000000000u : (uint32_t)ns;
}

static void plan(Client *one, uint64_t at) {
    one->wake = at;
    if (at < next_wake) next_wake = at;
}

static void complain(const char *what, const char *detail, size_t length) {
    if (*complaint) return;
    size_t at = (size_t)snprintf(complaint, sizeof complaint, "%s: ", what);
    for (size_t each = 0; each < length && at < sizeof complaint - 1; each++) {
        unsigned char letter = (unsigned char)detail[each];
        complaint[at++] = letter < ' ' || letter == '"' || letter == '\\' || letter > '~' ? ' ' : (char)letter;
    }
    complaint[at] = 0;
}

static void end(Client *one) {
    if (one->state == DONE) return;
    if (one->fd >= 0) close(one->fd);
    one->fd = -1;
    one->state = DONE;
    one->wake = 0;
    finished++;
}

static void fail(Client *one, const char *what, const char *detail, size_t length) {
    failed++;
    complain(what, detail, length);
    end(one);
}

static void ask(Client *one) {
    char body[512], request[1024];
    long tokens = option("tokens");
    int size = snprintf(body, sizeof body,
                        "{\"model\":\"%s\",\"stream\":true,\"max_tokens\":%ld,\"messages\":[{\"role\":\"user\",\"content\":"
                        "\"tokens=%ld pace=%ld hold=%ld tag=%ld\"}]}",
                        model, tokens, tokens, option("pace"), option("hold"), one->number * 1000 + one->asked);
    int length = snprintf(request, sizeof request,
                          "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAuthorization: Bearer %s\r\n"
                          "Content-Type: application/json\r\nAccept: application/json\r\nContent-Length: %d\r\n\r\n%s",
                          port, key, size, body);
    one->asked++;
    one->expected = 0;
    one->in_head = 1;
    one->chunk = 0;
    one->kept_size = one->line_size = 0;
    one->state = ASKED;
    one->asked_at = now_ns();
    if (send(one->fd, request, (size_t)length, MSG_NOSIGNAL) != length) fail(one, "not sent", "", 0);
}

static void begin(Client *one) {
    int yes = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    one->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(one->fd, (struct sockaddr *)&address, sizeof address)) {
        fail(one, "no connection", strerror(errno), strlen(strerror(errno)));
        return;
    }
    setsockopt(one->fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = one};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, one->fd, &event);
    one->wake = 0;
    ask(one);
}

static void answered(Client *one) {
    if (one->expected != option("tokens")) {
        char detail[80];
        int size = snprintf(detail, sizeof detail, "%ld tokens instead of %ld", one->expected, option("tokens"));
        fail(one, "incomplete", detail, (size_t)size);
        return;
    }
    answers++;
    if (one->asked < option("requests")) ask(one);
    else end(one);
}

static void first_token(Client *one, uint64_t at) {
    note(&firsts, &firsts_size, &firsts_room, at - one->asked_at);
    one->state = STREAMING;
    if (one->asked == 1 && ++with_first == streams) {
        printf("{\"streaming\":%ld}\n", streams);
        fflush(stdout);
    }
    if (option("leave")) {
        one->state = LEAVING;
        plan(one, at + (uint64_t)option("leave") * 1000);
    } else if (option("stall")) {
        one->state = STALLED;
        plan(one, at + (uint64_t)option("stall") * 1000000);
        epoll_ctl(epoll_fd, EPOLL_CTL_DEL, one->fd, NULL);
    }
}

static uint64_t hexadecimal(const char *digits, int count) {
    uint64_t value = 0;
    while (count--) {
        char digit = *digits++;
        value = value << 4 | (uint64_t)(digit <= '9' ? digit - '0' : digit - 'a' + 10);
    }
    return value;
}

/* Text of the body, its framing already taken off. */
static void hear(Client *one, const char *data, size_t size, uint64_t at) {
    static char text[KEPT_BYTES + READ_BYTES];
    memcpy(text, one->kept, one->kept_size);
    memcpy(text + one->kept_size, data, size);
    size += one->kept_size;
    const char *from = text, *until = text + size;
    while ((from = memchr(from, '@', (size_t)(until - from)))) {
        if (until - from < TOKEN_BYTES) break;
        if ((one->expected & 0xffff) != (long)hexadecimal(from + 1, 4)) {
            fail(one, "out of order", from, TOKEN_BYTES);
            return;
        }
        one->expected++;
        chunks++;
        note(&delays, &delays_size, &delays_room, at - hexadecimal(from + 5, 16));
        if (one->state == ASKED) first_token(one, at);
        from += TOKEN_BYTES;
    }
    const char *rest = from ? from : until;
    one->kept_size = (size_t)(until - rest);
    memcpy(one->kept, rest, one->kept_size);
}

/* Take the head and the chunks' framing off. */
static void unwrap(Client *one, char *data, size_t size, uint64_t at) {
    char *until = data + size;
    while (data < until && (one->state == ASKED || one->state == STREAMING || one->state == LEAVING)) {
        if (one->chunk > 0) {
            size_t part = (size_t)(until - data) < (size_t)one->chunk ? (size_t)(until - data) : (size_t)one->chunk;
            hear(one, data, part, at);
            data += part;
            one->chunk -= (long)part;
            continue;
        }
        char letter = *data++;
        if (one->line_size < sizeof one->line - 1) one->line[one->line_size++] = letter;
        if (letter != '\n') continue;
        one->line[one->line_size] = 0;
        size_t length = one->line_size;
        one->line_size = 0;
        if (one->in_head) {
            if (!strncmp(one->line, "HTTP/1.1 ", 9) && strncmp(one->line + 9, "200", 3)) {
                fail(one, "refused", one->line, length < 12 ? length : 12);
                if (!strchr(complaint, '{') && (size_t)(until - data) < READ_BYTES) {
                    *complaint = 0;
                    complain("refused", data, (size_t)(until - data));
                }
                return;
            }
            if (length == 2) one->in_head = 0;
            continue;
        }
        if (length == 2) {
            if (one->chunk == -1) {
                one->chunk = 0;
                answered(one);
                return;
            }
            continue;
        }
        one->chunk = strtol(one->line, NULL, 16);
        if (one->chunk == 0) one->chunk = -1;
    }
}

static void read_some(Client *one) {
    static char data[READ_BYTES];
    ssize_t got = recv(one->fd, data, sizeof data, MSG_DONTWAIT);
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) {
        fail(one, "cut off", one->kept, one->kept_size);
        return;
    }
    bytes += (uint64_t)got;
    unwrap(one, data, (size_t)got, now_ns());
}

static void wake(Client *one) {
    one->wake = 0;
    if (one->state == WAITING) {
        begin(one);
    } else if (one->state == LEAVING) {
        uint64_t at = now_ns();
        close(one->fd);
        one->fd = -1;
        printf("{\"left\":[%ld,%lu]}\n", one->number * 1000 + one->asked - 1, (unsigned long)at);
        fflush(stdout);
        answers++;
        if (one->asked < option("requests")) {
            one->state = WAITING;
            plan(one, at + 100000000u);
        } else {
            end(one);
        }
    } else if (one->state == STALLED) {
        answers++;
        end(one);
    }
}

static int ascending(const void *left, const void *right) {
    uint32_t a = *(const uint32_t *)left, b = *(const uint32_t *)right;
    return a < b ? -1 : a > b;
}

static void tell(const char *name, uint32_t *all, size_t size) {
    qsort(all, size, sizeof *all, ascending);
    const double shares[] = {0.5, 0.99, 1.0};
    printf("\"%s\":[", name);
    for (int at = 0; at < 3; at++) {
        size_t place = (size_t)((double)size * shares[at]);
        printf("%s%.1f", at ? "," : "", size ? all[place < size ? place : size - 1] / 1e3 : -1.0);
    }
    printf("],");
}

int main(int count, char **arguments) {
    if (count < 2) return 2;
    port = atoi(arguments[1]);
    for (int at = 2; at < count; at++) {
        char *value = strchr(arguments[at], '=');
        if (!value) return 2;
        *value++ = 0;
        int known = 1;
        if (!strcmp(arguments[at], "key")) key = value;
        else if (!strcmp(arguments[at], "model")) model = value;
        else {
            known = 0;
            for (size_t each = 0; each < sizeof options / sizeof *options; each++)
                if (!strcmp(options[each].name, arguments[at])) {
                    options[each].value = atol(value);
                    known = 1;
                }
        }
        if (!known) return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    prctl(PR_SET_TIMERSLACK, 1);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    streams = option("streams");
    clients = calloc((size_t)streams, sizeof *clients);
    epoll_fd = epoll_create1(0);
    timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    struct epoll_event events[512], event = {.events = EPOLLIN, .data.ptr = NULL};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, timer_fd, &event);
    uint64_t began = now_ns(), limit = next_wake = began + (uint64_t)option("limit") * 1000000;
    for (long at = 0; at < streams; at++) {
        clients[at].number = (int)at;
        clients[at].fd = -1;
        uint64_t begins_us = (uint64_t)(at * option("ramp")) + scattered((uint64_t)at, (uint64_t)option("pace"));
        plan(&clients[at], began + begins_us * 1000);
    }
    while (finished < streams) {
        uint64_t now = now_ns();
        if (now >= limit) break;
        if (now >= next_wake) {
            next_wake = limit;
            for (long at = 0; at < streams; at++) {
                if (clients[at].wake && clients[at].wake <= now) wake(&clients[at]);
                else if (clients[at].wake) plan(&clients[at], clients[at].wake);
            }
        }
        if (finished == streams) break;
        struct itimerspec timer = {{0, 0}, {(time_t)(next_wake / 1000000000u), (long)(next_wake % 1000000000u)}};
        timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &timer, NULL);
        int ready = epoll_wait(epoll_fd, events, 512, -1);
        for (int at = 0; at < ready; at++)
            if (events[at].data.ptr) read_some(events[at].data.ptr);
    }
    double wall = (double)(now_ns() - began) / 1e9;
    for (long at = 0; at < streams; at++)
        if (clients[at].state != DONE) fail(&clients[at], "not ended in time", "", 0);
    printf("{");
    tell("first_us", firsts, firsts_size);
    tell("delay_us", delays, delays_size);
    printf("\"wall_s\":%.3f,\"chunks\":%ld,\"bytes\":%lu,\"answers\":%ld,\"failed\":%ld,\"complaint\":\"%s\"}\n", wall,
           chunks, (unsigned long)bytes, answers, failed, complaint);
    return 0;
}
