import django.db.models.deletion
from django.conf import settings
from django.db import migrations, models


# What the hours already there come to.
DAYS = """
INSERT INTO gateway_usageday (
    day, user_id, team_id, api_key_id, model_slug, door,
    requests, errors, prompt_tokens, completion_tokens, cached_tokens, queue_ms, total_ms
)
SELECT date_trunc('day', hour, 'UTC'), user_id, team_id, api_key_id, model_slug, door,
       sum(requests), sum(errors), sum(prompt_tokens), sum(completion_tokens), sum(cached_tokens),
       sum(queue_ms), sum(total_ms)
FROM gateway_usagehour GROUP BY 1, 2, 3, 4, 5, 6
"""
# Until the days are there, nobody writes an hour that they would miss.
LOCK = 'LOCK TABLE gateway_usagehour IN SHARE ROW EXCLUSIVE MODE'


class Migration(migrations.Migration):

    dependencies = [
        ('accounts', '0003_audit_of_teams'),
        ('gateway', '0004_usage_bounds'),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.RunSQL(LOCK, migrations.RunSQL.noop),
        migrations.AlterField(
            model_name='usagehour',
            name='api_key',
            field=models.ForeignKey(db_constraint=False, null=True, on_delete=django.db.models.deletion.DO_NOTHING, related_name='+', to='accounts.apikey'),
        ),
        migrations.AlterField(
            model_name='usagehour',
            name='team',
            field=models.ForeignKey(db_constraint=False, null=True, on_delete=django.db.models.deletion.DO_NOTHING, related_name='+', to='accounts.team'),
        ),
        migrations.AlterField(
            model_name='usagehour',
            name='user',
            field=models.ForeignKey(db_constraint=False, null=True, on_delete=django.db.models.deletion.DO_NOTHING, related_name='+', to=settings.AUTH_USER_MODEL),
        ),
        migrations.CreateModel(
            name='UsageDay',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('model_slug', models.CharField(max_length=100)),
                ('door', models.CharField(choices=[('chat', 'Chat'), ('api', 'Api')], max_length=4)),
                ('requests', models.PositiveIntegerField(default=0)),
                ('errors', models.PositiveIntegerField(default=0)),
                ('prompt_tokens', models.PositiveBigIntegerField(default=0)),
                ('completion_tokens', models.PositiveBigIntegerField(default=0)),
                ('cached_tokens', models.PositiveBigIntegerField(default=0)),
                ('queue_ms', models.FloatField(default=0)),
                ('total_ms', models.FloatField(default=0)),
                ('day', models.DateTimeField(help_text='When it begins, at midnight UTC.')),
                ('api_key', models.ForeignKey(db_constraint=False, null=True, on_delete=django.db.models.deletion.DO_NOTHING, related_name='+', to='accounts.apikey')),
                ('team', models.ForeignKey(db_constraint=False, null=True, on_delete=django.db.models.deletion.DO_NOTHING, related_name='+', to='accounts.team')),
                ('user', models.ForeignKey(db_constraint=False, null=True, on_delete=django.db.models.deletion.DO_NOTHING, related_name='+', to=settings.AUTH_USER_MODEL)),
            ],
            options={
                'ordering': ['-day'],
                'indexes': [models.Index(fields=['user', 'day'], name='gateway_usa_user_id_9457b3_idx'), models.Index(fields=['team', 'day'], name='gateway_usa_team_id_c163cc_idx')],
                'constraints': [models.UniqueConstraint(fields=('day', 'user', 'team', 'api_key', 'model_slug', 'door'), name='one_sum_a_day', nulls_distinct=False)],
            },
        ),
        migrations.RunSQL(DAYS, migrations.RunSQL.noop),
    ]
