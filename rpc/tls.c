/* See tls.h. Owns the texts of the files. */
#include "rpc/tls.h"

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <openssl/x509_vfy.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/bytes.h"

struct rpc_tls_store {
    rpc_tls tls;
    rpc_identity identity;
    char *ca, *cert, *key;
};

/* ---- roles ---- */

static const char *const ROLE_NAMES[] = {"client", "operator", "node"};

const char *rpc_role_name(unsigned role)
{
    for (unsigned i = 0; i < 3; i++)
        if (role == 1u << i)
            return ROLE_NAMES[i];
    return "nobody";
}

bool rpc_role_parse(const char *text, unsigned *out_role)
{
    for (unsigned i = 0; i < 3; i++) {
        if (strcmp(text, ROLE_NAMES[i]) == 0) {
            *out_role = 1u << i;
            return true;
        }
    }
    return false;
}

/* What only looks is for everybody who has a certificate; what acts is the operator's and the
 * controller's; what serves requests is between routers and nodes. */
unsigned rpc_method_roles(const rpc_method *method)
{
    static const struct {
        const char *path; /* or a service: ends in / */
        unsigned roles;
    } RULES[] = {
        {"/grpc.health.v1.Health/", RPC_ROLE_CLIENT | RPC_ROLE_OPERATOR | RPC_ROLE_NODE},
        {"/grpc.reflection.v1alpha.ServerReflection/",
         RPC_ROLE_CLIENT | RPC_ROLE_OPERATOR | RPC_ROLE_NODE},
        {"/sluice.v1.Cluster/ListMembers", RPC_ROLE_CLIENT | RPC_ROLE_OPERATOR | RPC_ROLE_NODE},
        {"/sluice.v1.Node/GetStatus", RPC_ROLE_CLIENT | RPC_ROLE_OPERATOR | RPC_ROLE_NODE},
        {"/sluice.v1.Cluster/", RPC_ROLE_OPERATOR | RPC_ROLE_NODE},
        {"/sluice.v1.Node/", RPC_ROLE_OPERATOR | RPC_ROLE_NODE},
    };
    for (size_t i = 0; i < sizeof(RULES) / sizeof(RULES[0]); i++) {
        size_t size = strlen(RULES[i].path);
        bool service = RULES[i].path[size - 1] == '/';
        if (strncmp(method->path, RULES[i].path, service ? size : size + 1) == 0)
            return RULES[i].roles;
    }
    return RPC_ROLE_NODE;
}

/* ---- certificates ---- */

static X509 *parse_cert(const char *pem)
{
    BIO *bio = BIO_new_mem_buf(pem, -1);
    X509 *cert = bio ? PEM_read_bio_X509(bio, NULL, NULL, NULL) : NULL;
    BIO_free(bio);
    ERR_clear_error();
    return cert;
}

/* One entry of the subject as UTF-8; false: it is absent, twice there, or does not fit. */
static bool subject_text(X509 *cert, int nid, char *out_text, size_t size)
{
    X509_NAME *name = X509_get_subject_name(cert);
    int at = X509_NAME_get_index_by_NID(name, nid, -1);
    if (at < 0 || X509_NAME_get_index_by_NID(name, nid, at) >= 0)
        return false;
    unsigned char *text = NULL;
    int length =
        ASN1_STRING_to_UTF8(&text, X509_NAME_ENTRY_get_data(X509_NAME_get_entry(name, at)));
    bool fits = length > 0 && (size_t)length < size && !memchr(text, 0, (size_t)length);
    if (fits) {
        memcpy(out_text, text, (size_t)length);
        out_text[length] = '\0';
    }
    OPENSSL_free(text);
    return fits;
}

static void identify(X509 *cert, rpc_identity *out)
{
    char role[16];
    memset(out, 0, sizeof(*out));
    if (!subject_text(cert, NID_commonName, out->name, sizeof(out->name)))
        snprintf(out->name, sizeof(out->name), "?");
    for (char *c = out->name; *c; c++) /* it goes into logs and the audit */
        if ((unsigned char)*c < ' ' || *c == 127)
            *c = '?';
    if (!subject_text(cert, NID_organizationalUnitName, role, sizeof(role)) ||
        !rpc_role_parse(role, &out->role))
        out->role = 0;
}

sl_status rpc_identity_of(const char *pem, rpc_identity *out_identity, sl_err *err)
{
    X509 *cert = parse_cert(pem);
    if (!cert)
        return sl_fail(err, SL_INVALID, "not a certificate in PEM form");
    identify(cert, out_identity);
    X509_free(cert);
    return sl_ok();
}

/* ---- files ---- */

static bool given(const char *path)
{
    return path && *path;
}

static sl_status read_file(const char *prefix, const char *what, const char *path, char **out_text,
                           sl_err *err)
{
    char piece[4096];
    size_t got;
    sl_buf text;
    FILE *file = fopen(path, "re");
    if (!file)
        return sl_fail_errno(err, SL_IO, "--%s-%s: open %s", prefix, what, path);
    sl_buf_init(&text, RPC_TLS_FILE_MAX);
    while ((got = fread(piece, 1, sizeof(piece), file)) > 0)
        sl_buf_append(&text, piece, got);
    bool failed = ferror(file) != 0;
    fclose(file);
    sl_buf_putc(&text, '\0');
    if (failed || text.overflow) {
        sl_buf_fini(&text);
        return sl_fail(err, SL_IO, "--%s-%s: read %s: %s", prefix, what, path,
                       failed ? "error or not a file" : "too large");
    }
    *out_text = sl_buf_take(&text, NULL);
    return sl_ok();
}

static void time_text(const ASN1_TIME *time, char *out_text, size_t size)
{
    BIO *bio = BIO_new(BIO_s_mem());
    int length = 0;
    if (bio && ASN1_TIME_print(bio, time))
        length = BIO_read(bio, out_text, (int)size - 1);
    out_text[length > 0 ? length : 0] = '\0';
    BIO_free(bio);
}

/* Expiry is told by its date, everything else as OpenSSL puts it. */
static sl_status verify_error(X509 *cert, int code, const char *prefix, const rpc_tls_files *files,
                              sl_err *err)
{
    char when[64];
    if (code == X509_V_ERR_CERT_HAS_EXPIRED) {
        time_text(X509_get0_notAfter(cert), when, sizeof(when));
        return sl_fail(err, SL_DENIED, "--%s-cert %s: expired on %s: issue another", prefix,
                       files->cert, when);
    }
    if (code == X509_V_ERR_CERT_NOT_YET_VALID) {
        time_text(X509_get0_notBefore(cert), when, sizeof(when));
        return sl_fail(err, SL_DENIED, "--%s-cert %s: valid from %s on: is this clock right?",
                       prefix, files->cert, when);
    }
    return sl_fail(err, SL_DENIED, "--%s-cert %s: not issued by --%s-ca %s (%s)", prefix,
                   files->cert, prefix, files->ca, X509_verify_cert_error_string(code));
}

static X509_STORE *parse_cas(const char *pem)
{
    BIO *bio = BIO_new_mem_buf(pem, -1);
    X509_STORE *store = X509_STORE_new();
    int count = 0;
    for (X509 *ca; bio && store && (ca = PEM_read_bio_X509(bio, NULL, NULL, NULL)); count++) {
        X509_STORE_add_cert(store, ca);
        X509_free(ca);
    }
    BIO_free(bio);
    ERR_clear_error();
    if (count > 0)
        return store;
    X509_STORE_free(store);
    return NULL;
}

static sl_status verify_cert(X509 *cert, X509_STORE *cas, const char *prefix,
                             const rpc_tls_files *files, sl_err *err)
{
    X509_STORE_CTX *context = X509_STORE_CTX_new();
    sl_status status = sl_ok();
    if (!context || !X509_STORE_CTX_init(context, cas, cert, NULL))
        status = sl_fail(err, SL_INTERNAL, "--%s-cert: OpenSSL cannot verify", prefix);
    else if (X509_verify_cert(context) != 1)
        status = verify_error(cert, X509_STORE_CTX_get_error(context), prefix, files, err);
    X509_STORE_CTX_free(context);
    ERR_clear_error();
    return status;
}

static sl_status check_key(X509 *cert, const char *pem, const char *prefix,
                           const rpc_tls_files *files, sl_err *err)
{
    BIO *bio = BIO_new_mem_buf(pem, -1);
    EVP_PKEY *key = bio ? PEM_read_bio_PrivateKey(bio, NULL, NULL, NULL) : NULL;
    sl_status status = sl_ok();
    if (!key)
        status = sl_fail(err, SL_INVALID, "--%s-key %s: not a private key in PEM form", prefix,
                         files->key);
    else if (X509_check_private_key(cert, key) != 1)
        status = sl_fail(err, SL_INVALID, "--%s-key %s: not the key of %s", prefix, files->key,
                         files->cert);
    EVP_PKEY_free(key);
    BIO_free(bio);
    ERR_clear_error();
    return status;
}

static sl_status check_all(rpc_tls_store *store, const rpc_tls_files *files, const char *prefix,
                           sl_err *err)
{
    X509_STORE *cas = parse_cas(store->ca);
    if (!cas)
        return sl_fail(err, SL_INVALID, "--%s-ca %s: no certificate in PEM form", prefix,
                       files->ca);
    sl_status status = sl_ok();
    X509 *cert = store->cert ? parse_cert(store->cert) : NULL;
    if (store->cert && !cert)
        status = sl_fail(err, SL_INVALID, "--%s-cert %s: not a certificate in PEM form", prefix,
                         files->cert);
    if (cert && sl_is_ok(status = check_key(cert, store->key, prefix, files, err)))
        status = verify_cert(cert, cas, prefix, files, err);
    if (cert)
        identify(cert, &store->identity);
    X509_free(cert);
    X509_STORE_free(cas);
    return status;
}

static sl_status open_store(rpc_tls_store *store, const rpc_tls_files *files, const char *prefix,
                            sl_err *err)
{
    SL_TRY(read_file(prefix, "ca", files->ca, &store->ca, err));
    if (given(files->cert)) {
        SL_TRY(read_file(prefix, "cert", files->cert, &store->cert, err));
        SL_TRY(read_file(prefix, "key", files->key, &store->key, err));
    }
    SL_TRY(check_all(store, files, prefix, err));
    store->tls = (rpc_tls){
        .ca = store->ca, .cert = store->cert, .key = store->key, .server_name = RPC_TLS_NODE_NAME};
    return sl_ok();
}

sl_status rpc_tls_open(const rpc_tls_files *files, const char *prefix, rpc_tls_store **out_store,
                       sl_err *err)
{
    *out_store = NULL;
    if (!given(files->ca) && !given(files->cert) && !given(files->key))
        return sl_ok();
    if (!given(files->ca) || given(files->cert) != given(files->key))
        return sl_fail(err, SL_INVALID, "--%s-ca, --%s-cert and --%s-key go together", prefix,
                       prefix, prefix);
    rpc_tls_store *store = sl_alloc(1, sizeof(*store), "tls");
    sl_status status = open_store(store, files, prefix, err);
    if (!sl_is_ok(status)) {
        rpc_tls_close(store);
        return status;
    }
    *out_store = store;
    return status;
}

const rpc_tls *rpc_tls_get(const rpc_tls_store *store)
{
    return store ? &store->tls : NULL;
}

const rpc_identity *rpc_tls_identity(const rpc_tls_store *store)
{
    return &store->identity;
}

const char *rpc_tls_hint(const char *text, bool by_tls)
{
    /* A server that refuses a certificate closes after the client's side of the handshake. */
    bool closed = strstr(text, "Socket closed") || strstr(text, "Endpoint read failed") ||
                  strstr(text, "Connection reset");
    if (strstr(text, "Ssl handshake failed"))
        return "its certificate is foreign or expired, or it speaks without TLS";
    if (closed && by_tls)
        return "it may have refused our certificate: is there one, of its authority, not expired?";
    if (closed)
        return "it may want TLS: --tls-ca, --tls-cert, --tls-key (for etcd --etcd-ca ..)";
    return "";
}

void rpc_tls_close(rpc_tls_store *store)
{
    if (!store)
        return;
    sl_free(store->ca);
    sl_free(store->cert);
    if (store->key) /* not to be found in memory that is used again */
        OPENSSL_cleanse(store->key, strlen(store->key));
    sl_free(store->key);
    sl_free(store);
}
