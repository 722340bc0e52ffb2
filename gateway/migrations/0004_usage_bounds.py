import django.core.validators
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('gateway', '0003_usage_totals'),
    ]

    operations = [
        migrations.AlterField(
            model_name='price',
            name='completion_per_million',
            field=models.DecimalField(decimal_places=4, default=0, max_digits=12, validators=[django.core.validators.MinValueValidator(0)]),
        ),
        migrations.AlterField(
            model_name='price',
            name='prompt_per_million',
            field=models.DecimalField(decimal_places=4, default=0, max_digits=12, validators=[django.core.validators.MinValueValidator(0)]),
        ),
        migrations.AlterField(
            model_name='usageconfig',
            name='retention_days',
            field=models.PositiveIntegerField(default=90, help_text='After so many days single records go; their sums stay.', validators=[django.core.validators.MinValueValidator(1), django.core.validators.MaxValueValidator(3660)]),
        ),
    ]
