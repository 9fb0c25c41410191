/* UDP load: a request is one datagram, its answer one or several; closed loop or at a fixed rate.
 *
 * --port N       where to send on 127.0.0.1
 * --sessions N   flows, each with a socket of its own
 * --window N     requests under way at a time, spread over the flows in turn; may be more than there are flows
 * --request N    bytes of a request    --payload FILE   records of that size, taken in turn
 * --response N   bytes of a datagram of an answer    --burst N   how many    --bursts N   how many times
 * --new 1        every request is a flow of its own
 * --hold 1       open the flows, then keep them until standard input ends
 * --rate, --seconds, --warmup, --count   see common.h
 */
#include "common.h"

enum { BATCH = 32, OWN_ADDRESS = 0x7f010001 };

struct session {
    int descriptor;
    int64_t missing;
    int64_t *since;
    int first, waiting;
    int64_t heard; /* when the flow last made progress */
};

static struct session *sessions;
static int64_t request, answer, records, next_record;
static int port, depth, epoll, session_count, window, under_way, proven;
static uint32_t next_source;
static bool one_shot;
static char *payload;
static const int64_t PATIENCE = 300 * 1000 * 1000;

static void open_session(struct session *session)
{
    /* Not 127.0.0.1: its ports are for the proxies, which need one for each flow. */
    struct sockaddr_in address = loopback(port), source = loopback(0);
    source.sin_addr.s_addr = htonl(OWN_ADDRESS);
    session->descriptor = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (session->descriptor < 0)
        die_errno("socket");
    set_option(session->descriptor, SOL_SOCKET, SO_RCVBUF, SOCKET_BUFFER);
    set_option(session->descriptor, IPPROTO_UDP, UDP_GRO, 1);
    if (one_shot) {
        /* Never an address that was just used: that would be the old flow, not a new one. */
        uint32_t number = next_source++;
        source.sin_addr.s_addr = htonl(OWN_ADDRESS + 1 + number / 40000 % 0xff00);
        source.sin_port = htons(20000 + number % 40000);
    }
    if (bind(session->descriptor, (struct sockaddr *)&source, sizeof source))
        die_errno("bind");
    if (connect(session->descriptor, (struct sockaddr *)&address, sizeof address))
        die_errno("connect");
    watch(epoll, session->descriptor, EPOLLIN, session);
}

static void issue(int64_t since, int64_t time)
{
    struct session *session = sessions + queue_take();
    if (session->descriptor < 0)
        open_session(session);
    if (!session->waiting) {
        session->missing = answer;
        session->heard = time;
    }
    session->since[(session->first + session->waiting++) % depth] = since;
    run.issued++;
    under_way++;
    ssize_t amount = send(session->descriptor, payload + next_record * request, request, 0);
    next_record = (next_record + 1) % records;
    /* Refused or no room: the answer will be missed, and that is counted. */
    if (amount > 0)
        run.sent += amount;
}

static void release(struct session *session)
{
    if (one_shot) {
        close(session->descriptor);
        session->descriptor = -1;
    }
    session->waiting--;
    session->first = (session->first + 1) % depth;
    under_way--;
    queue_put(session - sessions);
}

static void give_up(int64_t time)
{
    static int64_t last;
    if (time - last < PATIENCE / 4)
        return;
    last = time;
    for (int i = 0; i < session_count; i++) {
        struct session *session = sessions + i;
        if (session->waiting && time - session->heard > PATIENCE) {
            run.lost += session->waiting;
            while (session->waiting)
                release(session);
        }
    }
    if (run.phase == OPENING && run.lost > 1000)
        die("no answers");
}

static void receive(struct session *session, int64_t time)
{
    static struct mmsghdr messages[BATCH];
    static struct iovec vectors[BATCH];
    static char starts[BATCH][64];
    for (int i = 0; i < BATCH && !vectors[i].iov_base; i++) {
        vectors[i] = (struct iovec){starts[i], sizeof starts[i]};
        messages[i].msg_hdr = (struct msghdr){.msg_iov = &vectors[i], .msg_iovlen = 1};
    }
    /* Only lengths are wanted: with MSG_TRUNC they are the real ones, also of coalesced datagrams. */
    int count = recvmmsg(session->descriptor, messages, BATCH, MSG_DONTWAIT | MSG_TRUNC, NULL);
    if (count <= 0)
        return;
    session->heard = time;
    for (int i = 0; i < count; i++) {
        run.received += messages[i].msg_len;
        session->missing -= messages[i].msg_len;
    }
    while (session->missing <= 0 && session->waiting) {
        record(now() - session->since[session->first]);
        session->missing += answer;
        run.requests++;
        if (run.phase == OPENING)
            proven++;
        release(session);
    }
}

int main(int count, char **words)
{
    struct epoll_event events[EVENTS];
    int64_t since;
    size_t payload_length;
    bool hold = option(count, words, "--hold", 0);

    prepare_process();
    configure_run(count, words);
    port = option(count, words, "--port", 0);
    session_count = option(count, words, "--sessions", 1);
    window = option(count, words, "--window", session_count);
    request = option(count, words, "--request", 64);
    answer = option(count, words, "--response", 64) * option(count, words, "--burst", 1);
    answer *= option(count, words, "--bursts", 1);
    one_shot = option(count, words, "--new", 0);
    payload = read_payload(text_option(count, words, "--payload", NULL), request, &payload_length);
    records = payload_length / request;
    if (request < 1 || answer < 1 || session_count < 1 || window < 1 || records < 1)
        die("sizes and numbers are at least 1");
    next_source = (uint32_t)(now() / 1000);

    depth = one_shot || window < session_count ? 1 : (window + session_count - 1) / session_count;
    sessions = allocate(session_count, sizeof *sessions);
    queue_create(session_count * depth);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    for (int round = 0; round < depth; round++)
        for (int i = 0; i < session_count; i++)
            queue_put(i);
    for (int i = 0; i < session_count; i++) {
        sessions[i].descriptor = -1;
        sessions[i].since = allocate(depth, sizeof *sessions[i].since);
    }

    while (run.phase != OVER) {
        int64_t time = now();
        advance(time);
        give_up(time);
        int most = run.rate > 0 && run.phase != OPENING ? session_count * depth : window;
        while (queue.count && under_way < most && due(time, &since))
            issue(since, time);
        int ready = wait_events(epoll, events, queue.count > 0);
        time = now();
        for (int i = 0; i < ready; i++) {
            struct session *session = events[i].data.ptr;
            if (session->descriptor >= 0)
                receive(session, time);
        }
        if (run.phase == OPENING && proven >= session_count)
            opened(hold);
    }
    print_result();
    return 0;
}
