/* Packing and parsing of messages. Owns nothing, any thread; everything off the wire passes through
 * kvt_wire_parse, which only reads through sl_reader. */
#include "kvtransfer/wire.h"

#include <string.h>

_Static_assert(KVT_WIRE_ACKS_MAX * 6 + 22 <= KVT_MESSAGE_MAX, "an ACK fits into a message");
_Static_assert(KVT_TEXT_MAX + 32 <= KVT_MESSAGE_MAX, "a REVOKE fits into a message");

/* Lower-case reasons and node names go into logs and metrics: printable ASCII only. */
static bool text_valid(const char *text, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        if (text[i] < 0x20 || text[i] > 0x7e)
            return false;
    }
    return true;
}

/* A length byte, then the text. */
static bool read_text(sl_reader *reader, char *out_text, size_t capacity)
{
    size_t size = sl_read_u8(reader);
    sl_span span = sl_read_span(reader, size);
    if (!sl_reader_ok(reader) || size >= capacity || !text_valid((const char *)span.data, size))
        return false;
    memcpy(out_text, span.data, size);
    out_text[size] = 0;
    return true;
}

static bool parse_hello(sl_reader *reader, kvt_hello *out_hello)
{
    if (sl_read_u32(reader) != KVT_WIRE_MAGIC)
        return false;
    out_hello->version = sl_read_u8(reader);
    out_hello->incarnation = sl_read_u64(reader);
    return read_text(reader, out_hello->name, sizeof out_hello->name);
}

static bool parse_piece(sl_reader *reader, kvt_piece_head *out_piece)
{
    out_piece->ordinal = sl_read_u32(reader);
    out_piece->block = sl_read_u32(reader);
    out_piece->group = sl_read_u16(reader);
    out_piece->attempt = sl_read_u8(reader);
    if (sl_read_u8(reader) != 0)
        return false;
    out_piece->bytes = sl_read_u64(reader);
    out_piece->sum = sl_read_u64(reader);
    return out_piece->attempt < KVT_FETCHES_MAX && out_piece->bytes <= KVT_PIECE_BYTES_MAX;
}

static bool parse_commit(sl_reader *reader, kvt_commit_head *out_commit)
{
    out_commit->sequence = sl_read_u32(reader);
    out_commit->pieces = sl_read_u32(reader);
    out_commit->tokens = sl_read_u64(reader);
    uint8_t final = sl_read_u8(reader);
    if (sl_read_u8(reader) != 0)
        return false;
    out_commit->final = final == 1;
    uint32_t payload = sl_read_u32(reader);
    out_commit->payload = sl_read_span(reader, payload);
    return final <= 1 && payload <= KVT_PAYLOAD_MAX && out_commit->pieces <= KVT_PIECES_MAX;
}

static bool parse_ack(sl_reader *reader, kvt_ack_list *out_ack)
{
    out_ack->count = sl_read_u16(reader);
    if (out_ack->count == 0 || out_ack->count > KVT_WIRE_ACKS_MAX)
        return false;
    for (uint32_t i = 0; i < out_ack->count; i++) {
        kvt_piece_ack *entry = &out_ack->entries[i];
        entry->ordinal = sl_read_u32(reader);
        entry->result = sl_read_u8(reader);
        entry->attempt = sl_read_u8(reader);
        if (entry->result >= KVT_RESULT_COUNT || entry->attempt >= KVT_FETCHES_MAX)
            return false;
    }
    return true;
}

static bool parse_revoke(sl_reader *reader, kvt_revoke_head *out_revoke)
{
    out_revoke->code = sl_read_u8(reader);
    return out_revoke->code != SL_OK &&
           read_text(reader, out_revoke->text, sizeof out_revoke->text);
}

static bool parse_body(sl_reader *reader, kvt_message *message)
{
    if (message->type == KVT_MESSAGE_HELLO || message->type == KVT_MESSAGE_HELLO_ACK)
        return parse_hello(reader, &message->hello);
    /* The version byte of every other message: one that changed layout is never misread. */
    if (sl_read_u8(reader) != KVT_WIRE_VERSION || sl_read_u16(reader) != 0)
        return false;
    message->nonce.high = sl_read_u64(reader);
    message->nonce.low = sl_read_u64(reader);
    switch (message->type) {
    case KVT_MESSAGE_PIECE:
        return parse_piece(reader, &message->piece);
    case KVT_MESSAGE_COMMIT:
        return parse_commit(reader, &message->commit);
    case KVT_MESSAGE_ACK:
        return parse_ack(reader, &message->ack);
    case KVT_MESSAGE_COMMIT_ACK:
        message->sequence = sl_read_u32(reader);
        return true;
    case KVT_MESSAGE_CANCEL:
        return true;
    case KVT_MESSAGE_REVOKE:
        return parse_revoke(reader, &message->revoke);
    default:
        return false;
    }
}

bool kvt_wire_parse(const void *data, size_t size, kvt_message *out_message)
{
    sl_reader reader = sl_reader_init(data, size);
    out_message->type = sl_read_u8(&reader);
    return parse_body(&reader, out_message) && sl_reader_ok(&reader) &&
           sl_reader_left(&reader) == 0;
}

static void write_text(sl_writer *writer, const char *text, size_t capacity)
{
    size_t size = strnlen(text, capacity - 1);
    if (!text_valid(text, size))
        writer->failed = true;
    sl_write_u8(writer, (uint8_t)size);
    sl_write_bytes(writer, text, size);
}

static void pack_commit(sl_writer *writer, const kvt_commit_head *commit)
{
    sl_write_u32(writer, commit->sequence);
    sl_write_u32(writer, commit->pieces);
    sl_write_u64(writer, commit->tokens);
    sl_write_u8(writer, commit->final);
    sl_write_u8(writer, 0);
    sl_write_u32(writer, (uint32_t)commit->payload.size);
    sl_write_bytes(writer, commit->payload.data, commit->payload.size);
}

static void pack_piece(sl_writer *writer, const kvt_piece_head *piece)
{
    sl_write_u32(writer, piece->ordinal);
    sl_write_u32(writer, piece->block);
    sl_write_u16(writer, piece->group);
    sl_write_u8(writer, piece->attempt);
    sl_write_u8(writer, 0);
    sl_write_u64(writer, piece->bytes);
    sl_write_u64(writer, piece->sum);
}

static void pack_ack(sl_writer *writer, const kvt_ack_list *ack)
{
    if (ack->count == 0 || ack->count > KVT_WIRE_ACKS_MAX) {
        writer->failed = true;
        return;
    }
    sl_write_u16(writer, (uint16_t)ack->count);
    for (uint32_t i = 0; i < ack->count; i++) {
        sl_write_u32(writer, ack->entries[i].ordinal);
        sl_write_u8(writer, ack->entries[i].result);
        sl_write_u8(writer, ack->entries[i].attempt);
    }
}

static void pack_body(sl_writer *writer, const kvt_message *message)
{
    sl_write_u8(writer, KVT_WIRE_VERSION);
    sl_write_u16(writer, 0);
    sl_write_u64(writer, message->nonce.high);
    sl_write_u64(writer, message->nonce.low);
    switch (message->type) {
    case KVT_MESSAGE_PIECE:
        pack_piece(writer, &message->piece);
        break;
    case KVT_MESSAGE_COMMIT:
        pack_commit(writer, &message->commit);
        break;
    case KVT_MESSAGE_ACK:
        pack_ack(writer, &message->ack);
        break;
    case KVT_MESSAGE_COMMIT_ACK:
        sl_write_u32(writer, message->sequence);
        break;
    case KVT_MESSAGE_CANCEL:
        break;
    case KVT_MESSAGE_REVOKE:
        sl_write_u8(writer, message->revoke.code);
        write_text(writer, message->revoke.text, sizeof message->revoke.text);
        break;
    default:
        writer->failed = true;
    }
}

size_t kvt_wire_pack(const kvt_message *message, void *data, size_t capacity)
{
    sl_writer writer = sl_writer_init(data, capacity);
    sl_write_u8(&writer, message->type);
    if (message->type == KVT_MESSAGE_HELLO || message->type == KVT_MESSAGE_HELLO_ACK) {
        sl_write_u32(&writer, KVT_WIRE_MAGIC);
        sl_write_u8(&writer, message->hello.version);
        sl_write_u64(&writer, message->hello.incarnation);
        write_text(&writer, message->hello.name, sizeof message->hello.name);
    } else {
        pack_body(&writer, message);
    }
    return writer.failed ? 0 : writer.at;
}

/* ---- frames */

const char *kvt_wire_parse_frame(const uint8_t *data, kvt_frame *out_frame)
{
    sl_reader reader = sl_reader_init(data, KVT_WIRE_FRAME_SIZE);
    uint32_t magic = sl_read_u32(&reader);
    uint8_t version = sl_read_u8(&reader);
    out_frame->kind = sl_read_u8(&reader);
    out_frame->head_size = sl_read_u16(&reader);
    out_frame->bytes = sl_read_u64(&reader);
    if (magic != KVT_WIRE_FRAME_MAGIC)
        return "the other end is no kvtransfer of the tcp transport";
    if (version != KVT_WIRE_FRAME_VERSION)
        return "the other end speaks another version of the tcp transport";
    bool piece = out_frame->kind == KVT_FRAME_PIECE;
    if (!piece && out_frame->kind != KVT_FRAME_MESSAGE)
        return "a frame of no known kind";
    if (out_frame->head_size != (piece ? KVT_WIRE_PIECE_SIZE : 0) || out_frame->bytes == 0 ||
        out_frame->bytes > (piece ? KVT_PIECE_BYTES_MAX : KVT_WIRE_MESSAGE_MAX))
        return "a frame of no possible size";
    return NULL;
}

void kvt_wire_pack_frame(const kvt_frame *frame, uint8_t out[KVT_WIRE_FRAME_SIZE])
{
    sl_writer writer = sl_writer_init(out, KVT_WIRE_FRAME_SIZE);
    sl_write_u32(&writer, KVT_WIRE_FRAME_MAGIC);
    sl_write_u8(&writer, KVT_WIRE_FRAME_VERSION);
    sl_write_u8(&writer, frame->kind);
    sl_write_u16(&writer, frame->head_size);
    sl_write_u64(&writer, frame->bytes);
}

/* ---- local reads */

bool kvt_wire_parse_local(const void *data, size_t size, kvt_local_message *out)
{
    sl_reader reader = sl_reader_init(data, size);
    uint8_t step = sl_read_u8(&reader);
    uint8_t version = sl_read_u8(&reader);
    out->pid = sl_read_u32(&reader);
    out->word_at = sl_read_u64(&reader);
    out->challenge = sl_read_u64(&reader);
    out->step = (kvt_local_step)step;
    return size == KVT_WIRE_LOCAL_SIZE && version == KVT_WIRE_LOCAL_VERSION &&
           step < KVT_LOCAL_STEP_COUNT;
}

void kvt_wire_pack_local(const kvt_local_message *message, uint8_t out[KVT_WIRE_LOCAL_SIZE])
{
    sl_writer writer = sl_writer_init(out, KVT_WIRE_LOCAL_SIZE);
    sl_write_u8(&writer, (uint8_t)message->step);
    sl_write_u8(&writer, KVT_WIRE_LOCAL_VERSION);
    sl_write_u32(&writer, message->pid);
    sl_write_u64(&writer, message->word_at);
    sl_write_u64(&writer, message->challenge);
}

uint32_t kvt_wire_parse_reads(const void *data, size_t size, kvt_read_offer out[KVT_WIRE_READS_MAX])
{
    sl_reader reader = sl_reader_init(data, size);
    size_t count = size / KVT_WIRE_READ_SIZE;
    if (size % KVT_WIRE_READ_SIZE != 0 || count > KVT_WIRE_READS_MAX)
        return 0;
    for (uint32_t i = 0; i < count; i++) {
        out[i].place = sl_read_u32(&reader);
        out[i].address = sl_read_u64(&reader);
        out[i].bytes = sl_read_u64(&reader);
        out[i].head = sl_read_span(&reader, KVT_WIRE_PIECE_SIZE).data;
        if (out[i].place >= KVT_WINDOW_READS || out[i].place - out[0].place != i)
            return 0;
    }
    return (uint32_t)count;
}

void kvt_wire_pack_read(const kvt_read_offer *offer, uint8_t out[KVT_WIRE_READ_SIZE])
{
    sl_writer writer = sl_writer_init(out, KVT_WIRE_READ_SIZE);
    sl_write_u32(&writer, offer->place);
    sl_write_u64(&writer, offer->address);
    sl_write_u64(&writer, offer->bytes);
    sl_write_bytes(&writer, offer->head, KVT_WIRE_PIECE_SIZE);
}

bool kvt_wire_parse_taken(const void *data, size_t size, kvt_taken_message *out)
{
    sl_reader reader = sl_reader_init(data, size);
    out->place = sl_read_u32(&reader);
    out->count = sl_read_u32(&reader);
    return size == KVT_WIRE_TAKEN_SIZE && out->count > 0 && out->place < KVT_WINDOW_READS &&
           out->count <= KVT_WINDOW_READS - out->place;
}

void kvt_wire_pack_taken(const kvt_taken_message *message, uint8_t out[KVT_WIRE_TAKEN_SIZE])
{
    sl_writer writer = sl_writer_init(out, KVT_WIRE_TAKEN_SIZE);
    sl_write_u32(&writer, message->place);
    sl_write_u32(&writer, message->count);
}
