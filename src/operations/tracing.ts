import {
  isSpanContextValid,
  ROOT_CONTEXT,
  type Span,
  SpanKind,
  SpanStatusCode,
  type Tracer,
  trace,
} from "@opentelemetry/api";

/** A piece of work in a trace. */
export type OpenSpan = {
  /** What the next piece continues (W3C Trace Context); undefined where there is no trace. */
  readonly traceparent: string | undefined;
  /** `fault`: what went wrong, as a stable code; undefined if nothing did. */
  end(fault: string | undefined, attributes?: Readonly<Record<string, string | number>>): void;
};

/** Ids and codes only: never a URL, a header, a body. */
export type Tracing = {
  /** One RPC that the server answers. */
  startCall(rpc: string, parent: string | undefined): OpenSpan;
  /** One attempt of a delivery. Its parent is the call that published the event, however long ago that was. */
  startAttempt(parent: string | null, attributes: Readonly<Record<string, string | number>>): OpenSpan;
  /** Sends what is left. */
  close(): Promise<void>;
};

/** With any of these somebody wants traces, and says where they go. */
const ASKING = ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_TRACES_EXPORTER"] as const;

/**
 * Traces as the standard `OTEL_*` variables ask for; undefined where they ask for none, and then nothing of the SDK is
 * loaded. It reads them itself: https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables
 */
export async function openTracing(service: "nuncio-server" | "nuncio-worker"): Promise<Tracing | undefined> {
  const { env } = process;
  const isDisabled = env.OTEL_SDK_DISABLED?.toLowerCase() === "true" || env.OTEL_TRACES_EXPORTER === "none";
  if (isDisabled || !ASKING.some((name) => env[name])) return undefined;
  if (!/(^|,) *service\.name=/.test(env.OTEL_RESOURCE_ATTRIBUTES ?? "")) env.OTEL_SERVICE_NAME ??= service;
  // Not who started us, with which command line, on which host.
  env.OTEL_NODE_RESOURCE_DETECTORS ??= "env,serviceinstance";
  // Metrics are for Prometheus, the log goes to stdout.
  env.OTEL_METRICS_EXPORTER ??= "none";
  env.OTEL_LOGS_EXPORTER ??= "none";
  const { NodeSDK } = await import("@opentelemetry/sdk-node");
  const sdk = new NodeSDK({ instrumentations: [] });
  sdk.start();
  return traceWith(trace.getTracer("nuncio"), () => sdk.shutdown());
}

export function traceWith(tracer: Tracer, close: () => Promise<void>): Tracing {
  return {
    startCall: (rpc, parent) => open(tracer.startSpan(rpc, { kind: SpanKind.SERVER }, contextOf(parent))),
    startAttempt: (parent, attributes) =>
      open(tracer.startSpan("deliver", { kind: SpanKind.CLIENT, attributes }, contextOf(parent ?? undefined))),
    close,
  };
}

function open(span: Span): OpenSpan {
  const context = span.spanContext();
  const { traceId, spanId, traceFlags } = context;
  return {
    traceparent: isSpanContextValid(context)
      ? `00-${traceId}-${spanId}-${traceFlags.toString(16).padStart(2, "0")}`
      : undefined,
    end(fault, attributes = {}) {
      span.setAttributes(attributes);
      if (fault !== undefined) {
        span.setAttribute("error.type", fault);
        span.setStatus({ code: SpanStatusCode.ERROR });
      }
      span.end();
    },
  };
}

/** A `traceparent` that was checked when it came. */
function contextOf(traceparent: string | undefined) {
  if (traceparent === undefined) return ROOT_CONTEXT;
  const [, traceId = "", spanId = "", flags = "00"] = traceparent.split("-");
  return trace.setSpanContext(ROOT_CONTEXT, {
    traceId,
    spanId,
    traceFlags: Number.parseInt(flags, 16),
    isRemote: true,
  });
}
