import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.security.MessageDigest;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Statement;
import java.util.HexFormat;
import java.util.Properties;
import org.postgresql.PGConnection;
import org.postgresql.PGNotification;

/** pgjdbc as a test client; see ../README.md. */
public class Client {
  private static String[] arguments;

  public static void main(String[] args) throws Exception {
    arguments = args;
    System.out.println(
        switch (args[0]) {
          case "select" -> select();
          case "cancel" -> cancel();
          case "listen" -> listen();
          case "copy" -> copy();
          case "error" -> error();
          default -> throw new IllegalArgumentException("no action " + args[0]);
        });
  }

  private static Connection connect() throws SQLException {
    Properties settings = new Properties();
    settings.setProperty("user", arguments[3]);
    settings.setProperty("sslmode", arguments[5]);
    settings.setProperty("loginTimeout", "20");
    String password = System.getenv("PGPASSWORD");
    if (password != null) settings.setProperty("password", password);
    String root = System.getenv("PGSSLROOTCERT");
    if (root != null) settings.setProperty("sslrootcert", root);
    String host = arguments[1].contains(":") ? "[" + arguments[1] + "]" : arguments[1];
    return DriverManager.getConnection(
        "jdbc:postgresql://" + host + ":" + arguments[2] + "/" + arguments[4], settings);
  }

  private static String select() throws SQLException {
    try (Connection connection = connect();
        Statement plain = connection.createStatement();
        PreparedStatement prepared = connection.prepareStatement("select ?::text, ?::int + 1")) {
      ResultSet who = plain.executeQuery("select current_user::text, inet_server_port()");
      who.next();
      String user = who.getString(1);
      Object port = who.getObject(2);
      prepared.setString(1, "it's \u00e4");
      prepared.setInt(2, 41);
      ResultSet row = prepared.executeQuery();
      row.next();
      return json("user", user, "port", port, "echo", row.getString(1), "sum", row.getInt(2));
    }
  }

  private static String cancel() throws Exception {
    try (Connection connection = connect();
        Statement statement = connection.createStatement()) {
      long started = System.nanoTime();
      Thread canceller =
          new Thread(
              () -> {
                try {
                  Thread.sleep(300);
                  statement.cancel();
                } catch (InterruptedException | SQLException failure) {
                  failure.printStackTrace();
                }
              });
      canceller.start();
      String state = null;
      try {
        statement.execute("select pg_sleep(30)");
      } catch (SQLException failure) {
        state = failure.getSQLState();
      }
      long elapsed = (System.nanoTime() - started) / 1_000_000;
      canceller.join();
      return json("sqlstate", state, "ms", elapsed, "alive", connection.isValid(5));
    }
  }

  private static String listen() throws SQLException {
    String channel = "postern_" + ProcessHandle.current().pid();
    try (Connection ear = connect();
        Connection mouth = connect();
        Statement listen = ear.createStatement();
        PreparedStatement notify = mouth.prepareStatement("select pg_notify(?, ?)")) {
      listen.execute("listen " + channel);
      notify.setString(1, channel);
      notify.setString(2, "hello");
      notify.execute();
      PGNotification[] heard = ear.unwrap(PGConnection.class).getNotifications(10_000);
      if (heard == null || heard.length == 0) return json("channel", null, "payload", null);
      return json("channel", heard[0].getName(), "payload", heard[0].getParameter());
    }
  }

  private static String copy() throws Exception {
    try (Connection connection = connect();
        Statement statement = connection.createStatement()) {
      var copies = connection.unwrap(PGConnection.class).getCopyAPI();
      var out = new ByteArrayOutputStream();
      var back = new ByteArrayOutputStream();
      long rows =
          copies.copyOut(
              "copy (select n, md5(n::text) from generate_series(1, 20000) n) to stdout", out);
      statement.execute("create temporary table copied (n int, hash text)");
      copies.copyIn("copy copied from stdin", new ByteArrayInputStream(out.toByteArray()));
      copies.copyOut("copy (select * from copied order by n) to stdout", back);
      return json("rows", rows, "out", digest(out), "back", digest(back));
    }
  }

  private static String error() {
    try (Connection connection = connect()) {
      return json("sqlstate", null, "message", null);
    } catch (SQLException failure) {
      return json("sqlstate", failure.getSQLState(), "message", failure.getMessage());
    }
  }

  private static String digest(ByteArrayOutputStream data) throws Exception {
    return HexFormat.of()
        .formatHex(MessageDigest.getInstance("SHA-256").digest(data.toByteArray()));
  }

  /** Names and values in turn. */
  private static String json(Object... pairs) {
    var text = new StringBuilder("{");
    for (int i = 0; i < pairs.length; i += 2) {
      text.append(i == 0 ? "" : ", ").append(quote(pairs[i])).append(": ");
      text.append(pairs[i + 1] instanceof String ? quote(pairs[i + 1]) : pairs[i + 1]);
    }
    return text.append("}").toString();
  }

  private static String quote(Object value) {
    var text = new StringBuilder("\"");
    for (char c : value.toString().toCharArray()) {
      if (c == '"' || c == '\\') text.append('\\').append(c);
      else if (c < ' ' || c > '~') text.append(String.format("\\u%04x", (int) c));
      else text.append(c);
    }
    return text.append('"').toString();
  }
}
