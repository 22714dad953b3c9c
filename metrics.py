"""The measures in the text format of Prometheus, with the figures of the process; knows what reads them."""

from collections.abc import Iterator
from typing import Final

from prometheus_client import CollectorRegistry, Metric, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from measures import BUCKETS_S, Durations, Family, Measures

PREFIX: Final = "coreflux_mcp_"
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
"""What every Prometheus reads; our names need no later version."""


def exposition(measures: Measures) -> tuple[bytes, str]:
    """Return what there is to tell, as it is now, and its content type."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Ours(measures))
    ProcessCollector(registry=registry)  # has nothing to tell where there is no /proc
    PlatformCollector(registry=registry)
    return generate_latest(registry), CONTENT_TYPE


class _Ours(Collector):
    """Hands the measures to the library."""

    def __init__(self, measures: Measures) -> None:
        self._measures = measures

    def collect(self) -> Iterator[Metric]:
        """Yield every measure, as the library knows it."""
        return map(_metric, self._measures.families())


def _metric(family: Family) -> Metric:
    name = PREFIX + family.name
    if family.kind == "histogram":
        histogram = HistogramMetricFamily(name, family.help, labels=family.labels)
        for labels, value in family.values:
            if isinstance(value, Durations):
                bounds = [*map(str, BUCKETS_S), "+Inf"]
                histogram.add_metric(labels, list(zip(bounds, value.up_to, strict=True)), value.sum_s)
        return histogram
    kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    metric = kind(name, family.help, labels=family.labels)
    for labels, value in family.values:
        if not isinstance(value, Durations):
            metric.add_metric(labels, value)
    return metric
