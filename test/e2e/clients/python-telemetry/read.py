"""Reads what Postern says of itself with the parsers of Prometheus and OpenTelemetry: read.py KIND FILE."""

import json
import sys


def families(parsed):
    return {
        family.name: {"type": family.type, "unit": family.unit, "samples": len(family.samples)}
        for family in parsed
    }


def openmetrics(text):
    from prometheus_client.openmetrics.parser import text_string_to_metric_families

    return families(text_string_to_metric_families(text))


def prometheus(text):
    from prometheus_client.parser import text_string_to_metric_families

    return families(text_string_to_metric_families(text))


def otlp_metrics(text):
    from google.protobuf.json_format import Parse
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

    request = Parse(text, ExportMetricsServiceRequest())
    return {
        metric.name: metric.WhichOneof("data")
        for resource in request.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }


def otlp_traces(text):
    from google.protobuf.json_format import Parse
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    request = Parse(text, ExportTraceServiceRequest())
    spans = [s for r in request.resource_spans for scope in r.scope_spans for s in scope.spans]
    return {"spans": [span.name for span in spans]}


kind, path = sys.argv[1:3]
with open(path, encoding="utf-8", newline="") as file:
    read = {
        "openmetrics": openmetrics,
        "prometheus": prometheus,
        "otlp-metrics": otlp_metrics,
        "otlp-traces": otlp_traces,
    }[kind]
    print(json.dumps(read(file.read())))
