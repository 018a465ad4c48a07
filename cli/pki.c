/* `sluicectl pki init` and `issue`: a small authority for the certificates of one cluster.
 *
 * A directory holds ca.pem and ca.key; issued ones lie beside them as NAME.pem and NAME.key. Keys
 * are P-256 and readable by their owner only. What is there is never written over. */
#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "cli/commands.h"
#include "cluster/member.h"
#include "rpc/tls.h"

#define PATH_MAX_BYTES 4096u
#define CA_VALID_S     (3650l * 86400) /* ten years */
#define CLOCK_SLACK_S  300l
#define SERIAL_BYTES   16

typedef struct pair {
    X509 *cert;
    EVP_PKEY *key;
} pair;

static void pair_free(pair *p)
{
    X509_free(p->cert);
    EVP_PKEY_free(p->key);
}

static sl_status path_of(const char *dir, const char *name, const char *suffix,
                         char out_path[PATH_MAX_BYTES], sl_err *err)
{
    if (snprintf(out_path, PATH_MAX_BYTES, "%s/%s%s", dir, name, suffix) >= (int)PATH_MAX_BYTES)
        return sl_fail(err, SL_TOO_LARGE, "--dir: over %u bytes", PATH_MAX_BYTES);
    return sl_ok();
}

/* ---- making ---- */

static bool add_extension(X509 *cert, X509 *issuer, int nid, const char *value)
{
    X509V3_CTX context;
    X509V3_set_ctx(&context, issuer, cert, NULL, NULL, 0);
    X509_EXTENSION *extension = X509V3_EXT_conf_nid(NULL, &context, nid, value);
    bool added = extension && X509_add_ext(cert, extension, -1);
    X509_EXTENSION_free(extension);
    return added;
}

static bool set_serial(X509 *cert)
{
    unsigned char bytes[SERIAL_BYTES];
    if (RAND_bytes(bytes, sizeof(bytes)) != 1)
        return false;
    bytes[0] &= 0x7f;
    BIGNUM *number = BN_bin2bn(bytes, sizeof(bytes), NULL);
    bool set = number && BN_to_ASN1_INTEGER(number, X509_get_serialNumber(cert));
    BN_free(number);
    return set;
}

static bool add_subject(X509 *cert, const char *unit, const char *name)
{
    X509_NAME *subject = X509_get_subject_name(cert);
    return X509_NAME_add_entry_by_txt(subject, "O", MBSTRING_UTF8, (const unsigned char *)"sluice",
                                      -1, -1, 0) &&
           X509_NAME_add_entry_by_txt(subject, "OU", MBSTRING_UTF8, (const unsigned char *)unit, -1,
                                      -1, 0) &&
           X509_NAME_add_entry_by_txt(subject, "CN", MBSTRING_UTF8, (const unsigned char *)name, -1,
                                      -1, 0);
}

/* A certificate with a fresh key; signed later. */
static bool begin(const char *unit, const char *name, long valid_s, pair *out)
{
    out->key = EVP_EC_gen("P-256");
    out->cert = X509_new();
    return out->key && out->cert && X509_set_version(out->cert, 2) && set_serial(out->cert) &&
           X509_gmtime_adj(X509_getm_notBefore(out->cert), -CLOCK_SLACK_S) &&
           X509_gmtime_adj(X509_getm_notAfter(out->cert), valid_s) &&
           X509_set_pubkey(out->cert, out->key) && add_subject(out->cert, unit, name);
}

static bool make_ca(pair *out)
{
    return begin("ca", "sluice ca", CA_VALID_S, out) &&
           X509_set_issuer_name(out->cert, X509_get_subject_name(out->cert)) &&
           add_extension(out->cert, out->cert, NID_basic_constraints, "critical,CA:TRUE") &&
           add_extension(out->cert, out->cert, NID_key_usage, "critical,keyCertSign,cRLSign") &&
           add_extension(out->cert, out->cert, NID_subject_key_identifier, "hash") &&
           X509_sign(out->cert, out->key, EVP_sha256());
}

/* "DNS:node.sluice.internal,DNS:decode-0,IP:10.0.0.1" */
static void write_names(sl_buf *names, unsigned role, const char *name, const char *hosts)
{
    sl_buf_printf(names, "%s%s%s", role == RPC_ROLE_NODE ? "DNS:" RPC_TLS_NODE_NAME "," : "",
                  "DNS:", name);
    for (const char *at = hosts; *at;) {
        size_t size = strcspn(at, ",");
        bool address = strspn(at, "0123456789.") == size || memchr(at, ':', size);
        if (size > 0)
            sl_buf_printf(names, ",%s:%.*s", address ? "IP" : "DNS", (int)size, at);
        at += size + (at[size] == ',');
    }
    sl_buf_putc(names, '\0');
}

static bool make_leaf(const pair *ca, unsigned role, const char *name, const char *hosts,
                      long valid_s, pair *out)
{
    sl_buf names;
    sl_buf_init(&names, PATH_MAX_BYTES);
    write_names(&names, role, name, hosts);
    bool made = !names.overflow && begin(rpc_role_name(role), name, valid_s, out) &&
                X509_set_issuer_name(out->cert, X509_get_subject_name(ca->cert)) &&
                add_extension(out->cert, ca->cert, NID_basic_constraints, "critical,CA:FALSE") &&
                add_extension(out->cert, ca->cert, NID_key_usage, "critical,digitalSignature") &&
                add_extension(out->cert, ca->cert, NID_ext_key_usage,
                              role == RPC_ROLE_NODE ? "serverAuth,clientAuth" : "clientAuth") &&
                add_extension(out->cert, ca->cert, NID_subject_alt_name, names.data) &&
                X509_sign(out->cert, ca->key, EVP_sha256());
    sl_buf_fini(&names);
    return made;
}

/* ---- files ---- */

static sl_status open_new(const char *path, mode_t mode, FILE **out_file, sl_err *err)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode);
    if (fd < 0 && errno == EEXIST)
        return sl_fail_errno(
            err, SL_IO, "%s (nothing is written over: if it is not needed, move it away)", path);
    if (fd < 0)
        return sl_fail_errno(err, SL_IO, "%s", path);
    *out_file = fdopen(fd, "w");
    return sl_ok();
}

static sl_status write_pair(const char *dir, const char *name, const pair *p, sl_err *err)
{
    char cert_path[PATH_MAX_BYTES], key_path[PATH_MAX_BYTES];
    FILE *cert = NULL, *key = NULL;
    SL_TRY(path_of(dir, name, ".pem", cert_path, err));
    SL_TRY(path_of(dir, name, ".key", key_path, err));
    SL_TRY(open_new(key_path, 0600, &key, err));
    bool written = PEM_write_PrivateKey(key, p->key, NULL, NULL, 0, NULL, NULL) == 1;
    written = fclose(key) == 0 && written;
    sl_status status = open_new(cert_path, 0644, &cert, err);
    if (sl_is_ok(status)) {
        written = PEM_write_X509(cert, p->cert) == 1 && written;
        written = fclose(cert) == 0 && written;
        if (written)
            return status;
        status = sl_fail(err, SL_IO, "%s: not written", cert_path);
        unlink(cert_path);
    }
    unlink(key_path); /* both or none */
    return status;
}

static sl_status read_ca(const char *dir, pair *out, sl_err *err)
{
    char path[PATH_MAX_BYTES];
    SL_TRY(path_of(dir, "ca", ".pem", path, err));
    FILE *file = fopen(path, "re");
    if (!file)
        return sl_fail_errno(err, SL_NOT_FOUND, "%s (made by: sluicectl pki init --dir %s)", path,
                             dir);
    out->cert = PEM_read_X509(file, NULL, NULL, NULL);
    fclose(file);
    SL_TRY(path_of(dir, "ca", ".key", path, err));
    file = fopen(path, "re");
    if (!file)
        return sl_fail_errno(err, SL_NOT_FOUND, "%s", path);
    out->key = PEM_read_PrivateKey(file, NULL, NULL, NULL);
    fclose(file);
    if (!out->cert || !out->key || X509_check_private_key(out->cert, out->key) != 1)
        return sl_fail(err, SL_INVALID, "%s: ca.pem and ca.key are no pair", dir);
    return sl_ok();
}

/* ---- commands ---- */

static int done(const ctl_options *options, const char *dir, const char *name, const char *role)
{
    sl_buf out;
    sl_buf_init(&out, 0);
    if (options->json) {
        ctl_json_open(&out, NULL, '{');
        ctl_json_text(&out, "name", name);
        ctl_json_text(&out, "role", role);
        ctl_json_text(&out, "dir", dir);
        ctl_json_bool(&out, "dry_run", options->dry_run);
        sl_buf_puts(&out, "}\n");
    } else {
        sl_buf_printf(&out, "%s%s/%s.pem and %s.key (%s)\n",
                      options->dry_run ? "dry run: would make " : "made ", dir, name, name, role);
    }
    ctl_print(&out);
    return CTL_EXIT_OK;
}

int ctl_pki_init(const ctl_options *options, const char *const *words)
{
    pair ca = {0};
    sl_err err;
    sl_status status = sl_ok();
    if (options->dry_run)
        return done(options, options->dir, "ca", "ca");
    if (mkdir(options->dir, 0700) != 0 && access(options->dir, W_OK) != 0)
        status = sl_fail_errno(&err, SL_IO, "%s", options->dir);
    else if (!make_ca(&ca))
        status = sl_fail(&err, SL_INTERNAL, "OpenSSL made no certificate");
    else
        status = write_pair(options->dir, "ca", &ca, &err);
    pair_free(&ca);
    return sl_is_ok(status) ? done(options, options->dir, "ca", "ca") : ctl_fail(&err);
}

int ctl_pki_issue(const ctl_options *options, const char *const *words)
{
    const char *role_name = words[0], *name = words[1];
    pair ca = {0}, leaf = {0};
    unsigned role = 0;
    sl_err err;
    if (!rpc_role_parse(role_name, &role) || !clu_name_valid(name) || strcmp(name, "ca") == 0) {
        fprintf(stderr,
                "sluicectl: pki issue %s %s: want client, operator or node, and a name of "
                "lower-case letters, digits, . _ - that is not ca\n",
                role_name, name);
        return CTL_EXIT_MISUSE;
    }
    sl_status status = read_ca(options->dir, &ca, &err);
    if (sl_is_ok(status) && !options->dry_run) {
        if (make_leaf(&ca, role, name, options->host, (long)(options->valid_ns / SL_S_NS), &leaf))
            status = write_pair(options->dir, name, &leaf, &err);
        else
            status =
                sl_fail(&err, SL_INVALID, "no certificate: is --host %s right?", options->host);
    }
    pair_free(&ca);
    pair_free(&leaf);
    return sl_is_ok(status) ? done(options, options->dir, name, role_name) : ctl_fail(&err);
}
