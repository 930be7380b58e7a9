import java.io.File;
import java.io.FileInputStream;
import java.io.FileOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.lang.reflect.InvocationTargetException;
import java.nio.charset.StandardCharsets;
import java.security.GeneralSecurityException;
import java.security.KeyStore;
import java.security.MessageDigest;
import java.security.cert.CertificateFactory;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Statement;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HexFormat;
import java.util.List;
import java.util.Properties;

/**
 * MySQL's Connector/J and MariaDB's, whichever is on the class path, as a test client; see ../README.md. What JDBC has
 * no name for is called by name, so that one source does for both.
 */
public class Client {
  private static String[] arguments;
  private static final boolean mariadb = System.getProperty("driver").equals("mariadb");

  public static void main(String[] args) throws Exception {
    arguments = args;
    System.out.println(
        switch (args[0]) {
          case "select" -> select();
          case "change-user" -> changeUser();
          case "reset" -> reset();
          case "kill-query" -> killQuery();
          case "multi-statements" -> multiStatements();
          case "big" -> big();
          case "load-local" -> loadLocal();
          case "error" -> json(withoutUser(tryLogin(arguments[2])));
          case "logins" -> logins();
          default -> throw new IllegalArgumentException("no action " + args[0]);
        });
  }

  private static String password() {
    String password = System.getenv("MYSQL_PWD");
    return password == null ? "" : password;
  }

  private static Connection connect() throws SQLException {
    return connect(arguments[2]);
  }

  private static Connection connect(String port) throws SQLException {
    var settings = new Properties();
    settings.setProperty("user", arguments[3]);
    settings.setProperty("connectTimeout", "20000");
    settings.setProperty("useServerPrepStmts", "true");
    settings.setProperty("allowMultiQueries", "true");
    settings.setProperty(mariadb ? "allowLocalInfile" : "allowLoadLocalInfile", "true");
    if (mariadb) settings.setProperty("useResetConnection", "true");
    if (!password().isEmpty()) {
      settings.setProperty("password", password());
      settings.setProperty("allowPublicKeyRetrieval", "true");
    }
    String root = System.getenv("MYSQL_SSL_CA");
    if (mariadb) {
      settings.setProperty(
          "sslMode",
          switch (arguments[5]) {
            case "verify-full" -> "verify-full";
            case "require" -> "trust";
            default -> "disable";
          });
      if (root != null) settings.setProperty("serverSslCert", root);
    } else {
      settings.setProperty(
          "sslMode",
          switch (arguments[5]) {
            case "verify-full" -> "VERIFY_IDENTITY";
            case "require" -> "REQUIRED";
            case "prefer" -> "PREFERRED";
            default -> "DISABLED";
          });
      if (root != null) {
        settings.setProperty("trustCertificateKeyStoreUrl", trustStore(root));
        settings.setProperty("trustCertificateKeyStorePassword", "public");
      }
    }
    return DriverManager.getConnection(
        (mariadb ? "jdbc:mariadb://" : "jdbc:mysql://")
            + arguments[1] + ":" + port + "/" + arguments[4],
        settings);
  }

  /** Connector/J reads certificates from a Java key store only. */
  private static String trustStore(String root) {
    try (InputStream pem = new FileInputStream(root)) {
      var store = KeyStore.getInstance(KeyStore.getDefaultType());
      store.load(null, null);
      store.setCertificateEntry("root", CertificateFactory.getInstance("X.509").generateCertificate(pem));
      File file = File.createTempFile("trust", null);
      file.deleteOnExit();
      try (var out = new FileOutputStream(file)) {
        store.store(out, "public".toCharArray());
      }
      return file.toURI().toString();
    } catch (IOException | GeneralSecurityException failure) {
      throw new IllegalStateException(failure);
    }
  }

  /** Calls a method that only this driver has; null when it has none of that name. */
  private static Boolean call(Connection connection, String name, String... values) throws Exception {
    for (var method : connection.getClass().getMethods()) {
      if (!method.getName().equals(name) || method.getParameterCount() != values.length) continue;
      try {
        method.invoke(connection, (Object[]) values);
        return true;
      } catch (InvocationTargetException failure) {
        throw failure.getCause() instanceof Exception cause ? cause : failure;
      }
    }
    return null;
  }

  private static ResultSet row(Connection connection, String query) throws SQLException {
    ResultSet rows = connection.createStatement().executeQuery(query);
    rows.next();
    return rows;
  }

  private static String select() throws SQLException {
    try (Connection connection = connect();
        PreparedStatement prepared = connection.prepareStatement("select ?, ? + 1")) {
      ResultSet who = row(connection, "select current_user(), connection_id()");
      prepared.setString(1, "it's \u00e4");
      prepared.setInt(2, 41);
      ResultSet echo = prepared.executeQuery();
      echo.next();
      return json(
          "user", who.getString(1), "connection", who.getLong(2), "greeted", null,
          "echo", echo.getString(1), "sum", echo.getInt(2),
          "notes", row(connection, "select count(*) from notes").getInt(1));
    }
  }

  private static String changeUser() throws Exception {
    try (Connection connection = connect()) {
      connection.createStatement().execute("set @mark = 1");
      if (call(connection, "changeUser", arguments[3], password()) == null) return json("unsupported", true);
      ResultSet after = row(connection, "select current_user(), @mark is null");
      return json("user", after.getString(1), "cleared", after.getBoolean(2));
    }
  }

  private static String reset() throws Exception {
    try (Connection connection = connect()) {
      connection.createStatement().execute("set @mark = 1");
      if (call(connection, mariadb ? "reset" : "resetServerState") == null) return json("unsupported", true);
      ResultSet after = row(connection, "select current_user(), @mark is null");
      return json("user", after.getString(1), "cleared", after.getBoolean(2));
    }
  }

  private static String killQuery() throws Exception {
    try (Connection connection = connect();
        Statement statement = connection.createStatement()) {
      long started = System.nanoTime();
      var canceller =
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
      Integer code = null;
      try {
        statement.executeQuery("select count(*) from notes where sleep(1) = 0");
      } catch (SQLException failure) {
        // Connector/J puts a class of its own around the server's error 1317.
        code = failure.getErrorCode() == 0 ? Integer.valueOf(1317) : Integer.valueOf(failure.getErrorCode());
      }
      long elapsed = (System.nanoTime() - started) / 1_000_000;
      canceller.join();
      return json("code", code, "ms", elapsed, "alive", connection.isValid(5));
    }
  }

  private static String multiStatements() throws SQLException {
    try (Connection connection = connect();
        Statement statement = connection.createStatement()) {
      List<Integer> results = new ArrayList<>();
      for (boolean more = statement.execute("select 1; select 2"); more; more = statement.getMoreResults()) {
        ResultSet rows = statement.getResultSet();
        rows.next();
        results.add(rows.getInt(1));
      }
      return json("results", results);
    }
  }

  private static String big() throws Exception {
    var text = new StringBuilder();
    for (int n = 0; n < 8 * 1024 * 1024; n++) {
      String number = Integer.toString(n);
      text.append("0000000", 0, 7 - number.length()).append(number).append(',');
    }
    try (Connection connection = connect();
        Statement statement = connection.createStatement()) {
      statement.execute("set @text = '" + text + "'");
      ResultSet rows = row(connection, "select sha2(@text, 256), @text");
      return json(
          "sent", digest(text.toString()), "server", rows.getString(1), "back", digest(rows.getString(2)));
    }
  }

  private static String loadLocal() throws SQLException {
    try (Connection connection = connect();
        Statement statement = connection.createStatement()) {
      statement.execute("create temporary table loaded (n int, text varchar(200))");
      try {
        statement.execute(
            "load data local infile '" + System.getenv("MYSQL_LOCAL_FILE") + "' into table loaded");
      } catch (SQLException failure) {
        return json("rows", 0, "code", failure.getErrorCode(), "message", failure.getMessage());
      }
      int rows = row(connection, "select count(*) from loaded").getInt(1);
      return json("rows", rows, "code", null, "message", null);
    }
  }

  private static String logins() {
    List<String> results = new ArrayList<>();
    for (String port : arguments[2].split(",")) results.add(json(tryLogin(port)));
    return "{\"results\": " + results + "}";
  }

  /** Names and values in turn, the user first. */
  private static Object[] tryLogin(String port) {
    try (Connection connection = connect(port)) {
      String user = row(connection, "select current_user()").getString(1);
      return new Object[] {"user", user, "code", null, "sqlstate", null, "message", null};
    } catch (SQLException failure) {
      return new Object[] {
        "user", null,
        "code", failure.getErrorCode(),
        "sqlstate", failure.getSQLState(),
        "message", failure.getMessage()
      };
    }
  }

  private static Object[] withoutUser(Object[] pairs) {
    return Arrays.copyOfRange(pairs, 2, pairs.length);
  }

  private static String digest(String text) throws Exception {
    byte[] bytes = text.getBytes(StandardCharsets.UTF_8);
    return HexFormat.of().formatHex(MessageDigest.getInstance("SHA-256").digest(bytes));
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
