import { Agent, createServer } from 'node:http';
import httpProxy from 'http-proxy';

/** The peer of Postern's own kind, as its users set it up: keep-alive towards the server, the credential put in. Told what to do by BENCH_PROXY. */
const { port, target } = JSON.parse(process.env['BENCH_PROXY'] ?? '{}') as {
  readonly port: number;
  readonly target: string;
};

const proxy = httpProxy.createProxyServer({
  target,
  agent: new Agent({ keepAlive: true, maxSockets: 256 }),
  headers: { authorization: 'Bearer bench' },
});
proxy.on('error', (_error, _request, response) => response.destroy());
createServer((request, response) => proxy.web(request, response)).listen(port, '127.0.0.1');
