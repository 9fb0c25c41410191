/* The target of UDP load: answers every datagram with one or several, in segmented bursts or one by one.
 *
 * --port N
 * --response N   bytes of a datagram    --burst N   how many    --bursts N   how many times
 * --segment 1    each burst is one call, and the kernel cuts it
 */
#include "common.h"

enum { BATCH = 32, COPIES = 128, MOST = BATCH * COPIES };

static char space[BATCH][64], block[1 << 16];
static struct sockaddr_in senders[BATCH];
static struct iovec inputs[BATCH];
static struct mmsghdr requests[BATCH], answers[MOST];

int main(int count, char **words)
{
    struct sockaddr_in address = loopback(option(count, words, "--port", 0));
    int descriptor = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    int response = option(count, words, "--response", 64), burst = option(count, words, "--burst", 1);
    int bursts = option(count, words, "--bursts", 1);
    bool segment = option(count, words, "--segment", 0);
    int copies = segment ? bursts : burst * bursts;
    struct iovec output = {block, segment ? (size_t)response * burst : (size_t)response};
    union {
        char bytes[CMSG_SPACE(sizeof(uint16_t))];
        struct cmsghdr aligned;
    } control = {0};

    prepare_process();
    if (output.iov_len > sizeof block || copies > COPIES)
        die("a burst has at most 64 KiB, an answer at most 128 calls");
    memset(block, 'z', sizeof block);
    control.aligned = (struct cmsghdr){CMSG_LEN(sizeof(uint16_t)), SOL_UDP, UDP_SEGMENT};
    *(uint16_t *)CMSG_DATA(&control.aligned) = response;
    for (int i = 0; i < BATCH; i++) {
        inputs[i] = (struct iovec){space[i], sizeof space[i]};
        requests[i].msg_hdr = (struct msghdr){
            .msg_iov = &inputs[i], .msg_iovlen = 1, .msg_name = &senders[i], .msg_namelen = sizeof senders[i]};
    }
    set_option(descriptor, SOL_SOCKET, SO_REUSEADDR, 1);
    set_option(descriptor, SOL_SOCKET, SO_RCVBUF, SOCKET_BUFFER);
    set_option(descriptor, SOL_SOCKET, SO_SNDBUF, SOCKET_BUFFER);
    if (bind(descriptor, (struct sockaddr *)&address, sizeof address))
        die_errno("bind");
    say("ready");

    for (;;) {
        int got = recvmmsg(descriptor, requests, BATCH, MSG_WAITFORONE, NULL);
        int due = 0;
        for (int i = 0; i < got; i++)
            for (int copy = 0; copy < copies; copy++)
                answers[due++].msg_hdr = (struct msghdr){
                    .msg_iov = &output,
                    .msg_iovlen = 1,
                    .msg_name = &senders[i],
                    .msg_namelen = sizeof senders[i],
                    .msg_control = segment ? control.bytes : NULL,
                    .msg_controllen = segment ? sizeof control.bytes : 0,
                };
        for (int sent = 0; sent < due;) {
            int more = sendmmsg(descriptor, answers + sent, due - sent, 0);
            /* An error belongs to one datagram: its client is gone. */
            sent += more > 0 ? more : 1;
        }
    }
}
