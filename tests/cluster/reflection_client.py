#!/usr/bin/python3
"""A client that knows nothing but an address: lists services by gRPC reflection, learns their messages, calls them (python3-grpcio).

    reflection_client.py ADDRESS [--ca FILE --cert FILE --key FILE] [Service/Method JSON]...

Prints one JSON object: {"services": {name: [methods]}, "replies": [..]}.
"""

import argparse
import json

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory

NODE_NAME = "node.sluice.internal"


def varint(value):
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def text_field(number, text):
    return varint(number << 3 | 2) + varint(len(text)) + text.encode()


def fields(data):
    """(number, bytes or integer) of a message: all that reflection's replies need."""
    at = 0

    def number():
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
    while at < len(data):
        key = number()
        if key & 7 == 0:
            yield key >> 3, number()
        else:
            assert key & 7 == 2, key
            size = number()
            at += size
            yield key >> 3, data[at - size:at]


class Reflection:
    def __init__(self, channel):
        self.call = channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
        self.pool = descriptor_pool.DescriptorPool()
        self.known = set()

    def ask(self, request):
        return dict(fields(next(iter(self.call(iter([request]), timeout=20)))))

    def services(self):
        return sorted(dict(fields(value))[1].decode() for _, value in fields(self.ask(text_field(7, ""))[6]))

    def learn(self, symbol):
        for _, data in fields(self.ask(text_field(4, symbol))[4]):
            self.add(descriptor_pb2.FileDescriptorProto.FromString(data))
        return self.pool.FindServiceByName(symbol)

    def add(self, file):
        if file.name in self.known:
            return
        self.known.add(file.name)
        for name in file.dependency:
            if name not in self.known:
                for _, data in fields(self.ask(text_field(3, name))[4]):
                    self.add(descriptor_pb2.FileDescriptorProto.FromString(data))
        self.pool.Add(file)


def message_class(descriptor):
    if hasattr(message_factory, "GetMessageClass"):
        return message_factory.GetMessageClass(descriptor)
    return message_factory.MessageFactory().GetPrototype(descriptor)


def call(channel, reflection, path, request):
    service, _, name = path.partition("/")
    method = reflection.learn(service).methods_by_name[name]
    invoke = channel.unary_unary(f"/{path}", request_serializer=lambda message: message.SerializeToString(),
                                 response_deserializer=message_class(method.output_type).FromString)
    try:
        reply = invoke(json_format.ParseDict(request, message_class(method.input_type)()), timeout=20)
        return json_format.MessageToDict(reply, preserving_proto_field_name=True)
    except grpc.RpcError as error:
        return {"error": error.code().name, "text": error.details()}


def read(path):
    with open(path, "rb") as file:
        return file.read()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    for name in ("ca", "cert", "key"):
        parser.add_argument(f"--{name}")
    parser.add_argument("calls", nargs="*")
    options = parser.parse_intermixed_args()
    if options.ca:
        credentials = grpc.ssl_channel_credentials(read(options.ca), read(options.key), read(options.cert))
        channel = grpc.secure_channel(options.address, credentials, [("grpc.ssl_target_name_override", NODE_NAME)])
    else:
        channel = grpc.insecure_channel(options.address)
    reflection = Reflection(channel)
    services = {name: [method.name for method in reflection.learn(name).methods] for name in reflection.services()}
    replies = [call(channel, reflection, path, json.loads(request)) for path, request in zip(options.calls[::2], options.calls[1::2])]
    print(json.dumps({"services": services, "replies": replies}))


main()
