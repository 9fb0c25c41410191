/* TCP load: requests over kept connections, or a new connection for each; closed loop or at a fixed rate.
 *
 * --port N       where to connect on 127.0.0.1
 * --sessions N   connections at a time
 * --window N     requests under way at a time, spread over the sessions in turn; may be more than there are sessions
 * --request N    bytes of a request       --payload FILE   what they are
 * --response N   bytes of an answer
 * --new 1        a connection serves one request; the target closes it
 * --hold 1       open the sessions, then keep them until standard input ends
 * --rate, --seconds, --warmup, --count   see common.h
 */
#include "common.h"

struct session {
    int descriptor; /* -1: not connected */
    int64_t unsent, missing; /* bytes of requests to send, bytes of the answer under way still to come */
    int64_t *since;          /* when the requests under way were due, a ring */
    int first, waiting;
};

static struct session *sessions;
static int64_t request, response;
static int port, depth, epoll, session_count, window, under_way, proven;
static bool one_shot;
static char *payload, scrap[BLOCK];
static size_t payload_length;

static void fail(struct session *session)
{
    if (run.phase == OPENING && run.lost > 100)
        die("connections fail");
    run.lost += session->waiting;
    under_way -= session->waiting;
    if (session->descriptor >= 0)
        close(session->descriptor);
    session->descriptor = -1;
    for (; session->waiting; session->waiting--)
        queue_put(session - sessions);
    session->unsent = 0;
}

static void connect_session(struct session *session)
{
    struct sockaddr_in address = loopback(port);
    session->descriptor = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (session->descriptor < 0)
        die_errno("socket");
    set_option(session->descriptor, IPPROTO_TCP, TCP_NODELAY, 1);
    if (connect(session->descriptor, (struct sockaddr *)&address, sizeof address) && errno != EINPROGRESS)
        die_errno("connect");
    watch(epoll, session->descriptor, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, session);
}

static void send_more(struct session *session)
{
    while (session->unsent > 0) {
        /* Small requests are the payload's bytes from the start; of large ones only the amount matters. */
        int64_t offset = request <= (int64_t)payload_length ? (request - session->unsent % request) % request : 0;
        int64_t most = (int64_t)payload_length - offset;
        ssize_t amount = send(session->descriptor, payload + offset, session->unsent < most ? session->unsent : most, 0);
        if (amount < 0) {
            if (errno != EAGAIN && errno != ENOTCONN)
                fail(session);
            return;
        }
        session->unsent -= amount;
        run.sent += amount;
    }
}

static void issue(int64_t since)
{
    struct session *session = sessions + queue_take();
    if (session->descriptor < 0) {
        connect_session(session);
        session->missing = response;
    }
    session->since[(session->first + session->waiting++) % depth] = since;
    session->unsent += request;
    run.issued++;
    under_way++;
    send_more(session);
}

static void free_slot(struct session *session)
{
    under_way--;
    run.requests++;
    if (run.phase == OPENING && proven < session_count)
        proven++;
    queue_put(session - sessions);
}

static void receive(struct session *session)
{
    for (;;) {
        /* The bytes are counted, not looked at: MSG_TRUNC saves the copy. */
        ssize_t amount = recv(session->descriptor, scrap, sizeof scrap * 8, MSG_TRUNC);
        if (amount < 0) {
            if (errno != EAGAIN)
                fail(session);
            return;
        }
        if (amount == 0) {
            if (!one_shot || session->missing > 0) {
                fail(session);
                return;
            }
            close(session->descriptor);
            session->descriptor = -1;
            session->waiting = 0;
            free_slot(session);
            return;
        }
        run.received += amount;
        session->missing -= amount;
        while (session->missing <= 0 && session->waiting) {
            record(now() - session->since[session->first]);
            if (one_shot)
                break;
            session->first = (session->first + 1) % depth;
            session->waiting--;
            session->missing += response;
            free_slot(session);
        }
    }
}

int main(int count, char **words)
{
    struct epoll_event events[EVENTS];
    int64_t since;
    bool hold = option(count, words, "--hold", 0);

    prepare_process();
    configure_run(count, words);
    port = option(count, words, "--port", 0);
    session_count = option(count, words, "--sessions", 1);
    window = option(count, words, "--window", session_count);
    request = option(count, words, "--request", 64);
    response = option(count, words, "--response", 64);
    one_shot = option(count, words, "--new", 0);
    payload = read_payload(text_option(count, words, "--payload", NULL), request < BLOCK ? request : BLOCK,
                           &payload_length);
    if (request < 1 || response < 1 || session_count < 1 || window < 1)
        die("sizes and numbers are at least 1");

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
        /* At a fixed rate every session may be used: a slow answer must not hold back the next request. */
        int most = run.rate > 0 && run.phase != OPENING ? session_count * depth : window;
        while (queue.count && under_way < most && due(time, &since))
            issue(since);
        int ready = wait_events(epoll, events, queue.count > 0);
        for (int i = 0; i < ready; i++) {
            struct session *session = events[i].data.ptr;
            if (session->descriptor >= 0 && events[i].events & EPOLLOUT)
                send_more(session);
            if (session->descriptor >= 0 && events[i].events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR))
                receive(session);
        }
        if (run.phase == OPENING && proven >= session_count)
            opened(hold);
    }
    print_result();
    return 0;
}
