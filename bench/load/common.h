/* What the load generators and the targets share: options, time, a latency histogram, and the run's phases.
 *
 * A generator prints one line for each phase, and the program that started it takes its own measurements then:
 *   ready   every session is open and has made one exchange
 *   begin   the measured time begins
 *   end     it is over
 * and then one line of JSON.
 */
#ifndef COMMON_H
#define COMMON_H

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <netinet/udp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif
#ifndef UDP_GRO
#define UDP_GRO 104
#endif

enum { EVENTS = 256, SOCKET_BUFFER = 4 << 20, BLOCK = 128 << 10 };
static const int64_t SECOND = 1000000000;

static _Noreturn void die(const char *message)
{
    fprintf(stderr, "%s\n", message);
    exit(1);
}

static _Noreturn void die_errno(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(1);
}

static inline int64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * SECOND + time.tv_nsec;
}

/* Options are pairs, "--name value"; what is left out has a default. */
static const char *text_option(int count, char **words, const char *name, const char *otherwise)
{
    for (int i = 1; i + 1 < count; i += 2)
        if (!strcmp(words[i], name))
            return words[i + 1];
    return otherwise;
}

static double option(int count, char **words, const char *name, double otherwise)
{
    const char *text = text_option(count, words, name, NULL);
    return text ? strtod(text, NULL) : otherwise;
}

static inline void *allocate(size_t count, size_t size)
{
    void *memory = calloc(count ? count : 1, size);
    if (!memory)
        die("out of memory");
    return memory;
}

static void prepare_process(void)
{
    struct rlimit limit;
    signal(SIGPIPE, SIG_IGN);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    /* Timers fire when they are due, not up to 50 us later. */
    prctl(PR_SET_TIMERSLACK, 1);
    if (!getrlimit(RLIMIT_NOFILE, &limit)) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

static inline struct sockaddr_in loopback(int port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
}

static inline void set_option(int descriptor, int level, int name, int value)
{
    setsockopt(descriptor, level, name, &value, sizeof value);
}

static inline void watch(int epoll, int descriptor, uint32_t interest, void *owner)
{
    struct epoll_event event = {.events = interest, .data.ptr = owner};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, descriptor, &event))
        die_errno("epoll_ctl");
}

/* The bytes to send: a file, or letters. */
static inline char *read_payload(const char *path, size_t least, size_t *length)
{
    struct stat status;
    int file;
    if (!path) {
        char *letters = allocate(1, least);
        memset(letters, 'x', least);
        *length = least;
        return letters;
    }
    file = open(path, O_RDONLY);
    if (file < 0 || fstat(file, &status))
        die_errno(path);
    char *bytes = allocate(1, status.st_size);
    if (read(file, bytes, status.st_size) != status.st_size)
        die_errno(path);
    close(file);
    *length = status.st_size;
    return bytes;
}

/* A histogram with 32 buckets for each power of two: within 3 % of the value, whatever its size. */
enum { SUB_BITS = 5, BUCKETS = 64 << SUB_BITS };
static uint64_t buckets[BUCKETS], recorded;

static inline void record(int64_t nanoseconds)
{
    uint64_t value = nanoseconds < 1 ? 1 : nanoseconds;
    int exponent = 63 - __builtin_clzll(value);
    int shift = exponent > SUB_BITS ? exponent - SUB_BITS : 0;
    buckets[(shift << SUB_BITS) + (value >> shift)]++;
    recorded++;
}

/* Microseconds that this part of what was recorded took at most. */
static inline double quantile(double part)
{
    uint64_t seen = 0, wanted = (uint64_t)(part * recorded);
    if (wanted >= recorded)
        wanted = recorded ? recorded - 1 : 0;
    for (int i = 0; i < BUCKETS; i++) {
        seen += buckets[i];
        if (seen > wanted) {
            int shift = i >> SUB_BITS > 1 ? (i >> SUB_BITS) - 1 : 0;
            uint64_t base = (uint64_t)(i - (shift << SUB_BITS)) << shift;
            return (base + ((1ull << shift) - 1) / 2.0) / 1000.0;
        }
    }
    return 0;
}

/* The phases of a run, and what is counted in the measured one. */
enum phase { OPENING, WARMING, MEASURING, OVER };
static struct {
    enum phase phase;
    int64_t warmup, seconds, most, deadline, began, ended, until;
    double rate; /* requests a second; 0: the next one when one is answered */
    int64_t issued, start;
    uint64_t requests, lost, sent, received;
} run;

static void say(const char *word)
{
    printf("%s\n", word);
    fflush(stdout);
}

static inline void configure_run(int count, char **words)
{
    run.warmup = option(count, words, "--warmup", 0.1) * SECOND;
    run.seconds = option(count, words, "--seconds", 1) * SECOND;
    run.most = option(count, words, "--count", 0);
    run.rate = option(count, words, "--rate", 0);
    run.deadline = now() + 30 * SECOND;
}

/* Every session is open: hold them until there is nobody to hold them for, or go on to the load. */
static inline void opened(bool hold)
{
    say("ready");
    if (hold) {
        char byte;
        while (read(0, &byte, 1) > 0)
            ;
        exit(0);
    }
    run.phase = WARMING;
    run.start = now();
    run.until = run.start + run.warmup;
    run.issued = 0;
}

/* To be called often; does what is due. */
static inline void advance(int64_t time)
{
    if (run.phase == OPENING && time > run.deadline)
        die("the sessions did not open in time");
    if (run.phase == WARMING && time >= run.until) {
        run.phase = MEASURING;
        memset(buckets, 0, sizeof buckets);
        recorded = run.requests = run.lost = run.sent = run.received = 0;
        say("begin");
        run.began = now();
        run.until = run.began + run.seconds;
    } else if (run.phase == MEASURING && (time >= run.until || (run.most && (int64_t)run.requests >= run.most))) {
        run.phase = OVER;
        run.ended = now();
        say("end");
    }
}

/* Whether the next request is due, and since when; without a rate it always is. */
static inline bool due(int64_t time, int64_t *since)
{
    *since = time;
    if (run.rate > 0 && run.phase != OPENING) {
        *since = run.start + (int64_t)(run.issued / run.rate * SECOND);
        return *since <= time;
    }
    return true;
}

/* Until something is ready, or a request is due, or the phase may change. */
static inline int wait_events(int epoll, struct epoll_event *events, bool may_issue)
{
    struct timespec timeout = {0, 20 * 1000 * 1000};
    int64_t since, time = now();
    if (run.rate > 0 && may_issue && run.phase != OPENING) {
        due(time, &since);
        int64_t left = since - time;
        timeout.tv_nsec = left < 0 ? 0 : left < timeout.tv_nsec ? left : timeout.tv_nsec;
    }
    int count = epoll_pwait2(epoll, events, EVENTS, &timeout, NULL);
    return count < 0 ? 0 : count;
}

static inline void print_result(void)
{
    double seconds = (run.ended - run.began) / 1e9;
    printf("{\"seconds\": %.6f, \"requests\": %lu, \"lost\": %lu, \"sent\": %lu, \"received\": %lu, "
           "\"p50\": %.1f, \"p99\": %.1f, \"p999\": %.1f, \"max\": %.1f}\n",
           seconds, run.requests, run.lost, run.sent, run.received, quantile(0.5), quantile(0.99), quantile(0.999),
           quantile(1));
}

/* Which sessions may take the next request: whoever has waited longest comes first. */
static struct {
    int *places, size, head, count;
} queue;

static inline void queue_create(int size)
{
    queue.places = allocate(size, sizeof *queue.places);
    queue.size = size;
}

static inline void queue_put(int session)
{
    queue.places[(queue.head + queue.count++) % queue.size] = session;
}

static inline int queue_take(void)
{
    int session = queue.places[queue.head];
    queue.head = (queue.head + 1) % queue.size;
    queue.count--;
    return session;
}

#endif
