// Before sasori's own program, by `node --import`: a host that is far away, as no test can have one without root.
// FAR_NAME has two addresses, and the second leads nowhere; packets to FAR_PORT take FAR_MS until they leave.

import dns from "node:dns";

const { FAR_NAME, FAR_PORT, FAR_MS } = process.env;

const lookup = dns.lookup;
dns.lookup = (name, options, done) => {
  if (name !== FAR_NAME) return lookup(name, options, done);
  const addresses = [
    { address: "127.0.0.1", family: 4 },
    { address: "::1", family: 6 },
  ];
  process.nextTick(done, null, ...(options.all ? [addresses] : ["127.0.0.1", 4]));
};

// Below everything that counts the time for an address.
const { TCP } = process.binding("tcp_wrap");
const connect = TCP.prototype.connect;
TCP.prototype.connect = function (request, address, port) {
  if (String(port) !== FAR_PORT) return connect.call(this, request, address, port);
  const arrival = setTimeout(() => connect.call(this, request, address, port), Number(FAR_MS));
  // A connection that is given up does not keep the program running.
  this.close = (done) => {
    clearTimeout(arrival);
    return TCP.prototype.close.call(this, done);
  };
  return 0;
};
