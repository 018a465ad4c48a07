/* Options by which a process finds its cluster, shows who it is and whom it trusts, the same for
 * all programs, and what was made of them. Thread: start-up; afterwards any. */
#ifndef CLUSTER_TRUST_H
#define CLUSTER_TRUST_H

#include "base/config.h"
#include "cluster/etcd.h"
#include "rpc/tls.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Rows of an option table whose struct `owner` has etcd and cluster as texts. */
#define CLU_CLUSTER_OPTIONS(owner)                                         \
    {.name = "etcd",                                                       \
     .section = "Cluster",                                                 \
     .type = SL_OPTION_STRING,                                             \
     .offset = offsetof(owner, etcd),                                      \
     .default_text = "http://127.0.0.1:2379",                              \
     .help = "etcd endpoints, separated by commas"},                       \
    {                                                                      \
        .name = "cluster", .section = "Cluster", .type = SL_OPTION_STRING, \
        .offset = offsetof(owner, cluster), .default_text = "default",     \
        .help = "cluster name: the prefix of its keys in etcd"             \
    }

typedef struct clu_trust_options { /* NULL: not given */
    const char *tls_cert, *tls_key, *tls_ca;
    const char *etcd_cert, *etcd_key, *etcd_ca;
    const char *etcd_user, *etcd_password_file;
} clu_trust_options;

#define CLU_TRUST_OPTION(owner, member, field, option, text)          \
    {                                                                 \
        .name = option, .section = "Trust", .type = SL_OPTION_STRING, \
        .offset = offsetof(owner, member.field), .help = text         \
    }
/* Rows of an option table whose struct `owner` has the options as `member`. */
#define CLU_TRUST_OPTIONS(owner, member)                                                           \
    CLU_TRUST_OPTION(owner, member, tls_ca, "tls-ca",                                              \
                     "certificates (PEM) of who issues ours: gRPC by TLS, from both sides"),       \
        CLU_TRUST_OPTION(owner, member, tls_cert, "tls-cert", "our certificate (PEM)"),            \
        CLU_TRUST_OPTION(owner, member, tls_key, "tls-key", "its private key (PEM)"),              \
        CLU_TRUST_OPTION(owner, member, etcd_ca, "etcd-ca",                                        \
                         "certificates (PEM) of who issues etcd's, for https endpoints"),          \
        CLU_TRUST_OPTION(owner, member, etcd_cert, "etcd-cert", "our certificate for etcd (PEM)"), \
        CLU_TRUST_OPTION(owner, member, etcd_key, "etcd-key", "its private key (PEM)"),            \
        CLU_TRUST_OPTION(owner, member, etcd_user, "etcd-user", "name by which etcd knows us"),    \
        CLU_TRUST_OPTION(owner, member, etcd_password_file, "etcd-password-file",                  \
                         "file with its password, on its first line; not open to others")

typedef struct clu_trust clu_trust;

/* Reads what the options name. Errors name option and file. */
SL_MUST_USE sl_status clu_trust_open(const clu_trust_options *options, clu_trust **out_trust,
                                     sl_err *err);
void clu_trust_close(clu_trust *trust);
/* For our servers and for channels to our kind; NULL: plain text. */
const rpc_tls *clu_trust_tls(const clu_trust *trust);
/* Warns or refuses what does not fit: SL_INVALID, as a node with an operator's certificate. */
SL_MUST_USE sl_status clu_trust_check_role(const clu_trust *trust, unsigned roles, sl_err *err);
/* Fills tls, user and password. */
void clu_trust_etcd(const clu_trust *trust, clu_etcd_options *options);

#ifdef __cplusplus
}
#endif
#endif
